"""A run tells where it was made."""

import torch

from loraqa.train.environment import environment


def test_the_environment_names_versions_and_machine() -> None:
    found = environment(torch.device("cpu"), torch.bfloat16, "loraqa train x")
    assert found["torch"] == torch.__version__
    assert found["dtype"] == "bfloat16"
    assert found["threads"] == torch.get_num_threads()
    assert found["command"] == "loraqa train x"
    assert {"python", "loraqa", "transformers", "platform", "processor", "device"} <= found.keys()
