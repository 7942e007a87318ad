"""A run's environment is what the libraries, the system and `/proc` say of themselves."""

import os
import re
import sys
from pathlib import Path

import numpy
import pytest
import safetensors
import tokenizers
import torch
import transformers

import loraqa
from loraqa.train.environment import environment

CPUINFO = Path("/proc/cpuinfo")


def test_versions_are_those_of_the_modules() -> None:
    found = environment(torch.device("cpu"), torch.float32, "loraqa train x")
    assert found["python"] == sys.version.split()[0]
    for module in (loraqa, torch, transformers, tokenizers, safetensors, numpy):
        assert found[module.__name__] == module.__version__


def test_it_says_how_the_run_computes() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = environment(torch.device("cpu"), torch.bfloat16, "loraqa train x")
    finally:
        torch.set_num_threads(threads)
    assert found["threads"] == 3
    assert (found["device"], found["dtype"]) == ("cpu", "bfloat16")
    assert found["command"] == "loraqa train x"
    assert os.uname().machine in found["platform"]


@pytest.mark.skipif(
    not CPUINFO.exists() or "model name" not in CPUINFO.read_text(),
    reason="the system does not tell the processor's name in /proc/cpuinfo",
)
def test_the_processor_is_named_with_its_threads() -> None:
    told = CPUINFO.read_text()
    threads = len(re.findall(r"^processor\s*:", told, re.MULTILINE))
    names = re.findall(r"^model name\s*: (.*\S)", told, re.MULTILINE)
    found = environment(torch.device("cpu"), torch.float32, "")["processor"]
    assert found == f"{names[0]} ({threads} threads)"
