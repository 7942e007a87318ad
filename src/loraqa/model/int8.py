"""Loading a model with int8 weights: each weight is quantised as soon as it is read.

transformers knows methods of quantisation by name. This one is registered there, so that
`from_pretrained` never holds more than one weight that it has not quantised yet.
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from loraqa.lora.int8 import is_quantisable, quantise

_METHOD = "loraqa-int8"
_WEIGHT = ".weight"


@register_quantization_config(_METHOD)
class Int8Config(QuantizationConfigMixin):  # type: ignore[misc]
    """`from_pretrained(…, quantization_config=Int8Config())` loads a model with `Int8Layer`s."""

    def __init__(self) -> None:
        self.quant_method = _METHOD


@register_quantizer(_METHOD)
class _Int8Quantizer(HfQuantizer):  # type: ignore[misc]
    """What `from_pretrained` asks about the method."""

    is_trainable = True

    def __init__(self, config: Int8Config, **options: Any) -> None:
        super().__init__(config, **options)
        self._left_alone: set[str] = set()

    def is_serializable(self) -> bool:
        return False

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        if not param_name.endswith(_WEIGHT) or param_name in self._left_alone:
            return False
        return is_quantisable(model, model.get_submodule(param_name.removesuffix(_WEIGHT)))

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **_: Any
    ) -> PreTrainedModel:
        # The weights of the files are the same, and the configuration is compared with theirs.
        self.remove_quantization_config(model)
        return model

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self._left_alone)


class _Quantise(ConversionOps):  # type: ignore[misc]
    """Puts a weight that was read into its layer, as int8.

    A weight that does not fit is loaded as it is. So transformers reports one of a wrong size, and
    whoever loads the model can quantise the others, and hears why that is impossible.
    """

    def __init__(self, left_alone: set[str]) -> None:
        self._left_alone = left_alone

    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        model: PreTrainedModel,
        full_layer_name: str,
        missing_keys: set[str],
        **_: Any,
    ) -> dict[str, Tensor]:
        (read,) = input_dict.values()
        weight = read[0] if isinstance(read, list) else read
        name = full_layer_name.removesuffix(_WEIGHT)
        layer: Any = model.get_submodule(name)
        if weight.shape != layer.weight.shape or not weight.isfinite().all():
            self._left_alone.add(full_layer_name)
            return {full_layer_name: weight}
        quantise(name, layer, weight)
        missing_keys.discard(full_layer_name)
        return {}
