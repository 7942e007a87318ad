"""The environment of a run."""

import torch

from loraqa.train.environment import environment


def test_the_environment_names_versions_machine_and_accelerations() -> None:
    found = environment(torch.device("cpu"), torch.bfloat16, "loraqa train x", ("a", "b"))
    assert found["torch"] == torch.__version__
    assert found["dtype"] == "bfloat16"
    assert found["threads"] == torch.get_num_threads()
    assert found["command"] == "loraqa train x"
    assert found["accelerations"] == ["a", "b"]
    assert {"python", "loraqa", "transformers", "platform", "processor", "device"} <= found.keys()
