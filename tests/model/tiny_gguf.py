"""Write tiny models as GGUF files, as llama.cpp's convert_hf_to_gguf.py does."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

F32 = gguf.GGMLQuantizationType.F32


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    architecture: str | None = None,
    quantisation: gguf.GGMLQuantizationType = F32,
    with_tokenizer: bool = True,
    leave_out: str = "nothing",
) -> Path:
    """Write a GPT-2, Llama or Qwen 2, and return the path.

    Without `tokenizer`, which is a byte-level one, the file gets a small sentencepiece tokenizer.
    """
    kind = model.config.model_type
    writer = gguf.GGUFWriter(path, architecture or kind)
    _write_config(writer, model.config)
    if with_tokenizer and tokenizer is None:
        _write_sentencepiece(writer, model.config.vocab_size)
    elif with_tokenizer:
        _write_tokenizer(writer, tokenizer, model.config.vocab_size)
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[kind], model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if leave_out in name or not _is_kept(name, model.config):
            continue
        values = _as_written(name, tensor.numpy(), model.config)
        # Vectors are never quantised, nor what does not consist of whole blocks.
        kept = F32 if values.ndim == 1 or values.shape[-1] % 32 else quantisation
        writer.add_tensor(named, gguf.quantize(values, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_config(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Write a tokenizer with as many tokens as the embedding has rows."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    unused = [f"[PAD{number}]" for number in range(len(tokens), size)]
    special = {token["content"] for token in state["added_tokens"]}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    kinds |= dict.fromkeys(special, gguf.TokenType.CONTROL)
    kinds |= dict.fromkeys(unused, gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(kinds))
    writer.add_token_types(list(kinds.values()))
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _write_sentencepiece(writer: gguf.GGUFWriter, size: int) -> None:
    """Write bytes, letters and some words; as in older files, nothing says that bos is added."""
    control, piece = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    kinds = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": control, "</s>": control}
    kinds |= {f"<0x{byte:02X}>": gguf.TokenType.BYTE for byte in range(256)}
    kinds |= dict.fromkeys(["▁", *"abcdefghijklmnopqrstuvwxyz", "▁t", "▁th", "▁the", "he"], piece)
    kinds |= {f"[PAD{id}]": gguf.TokenType.UNUSED for id in range(len(kinds), size)}
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(kinds))
    writer.add_token_types(list(kinds.values()))
    writer.add_token_scores([-float(id) for id in range(size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _is_kept(name: str, config: Any) -> bool:
    """GPT-2's causal mask is no weight, and a tied head is the embedding."""
    return not (name == "lm_head.weight" and config.tie_word_embeddings)


def _as_written(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    if config.model_type == "gpt2" and ".c_" in name and values.ndim == 2:
        return np.ascontiguousarray(values.T)
    if config.model_type == "llama" and ".q_proj." in name:
        return _with_pairs_of_rotation(values, config.num_attention_heads)
    if config.model_type == "llama" and ".k_proj." in name:
        return _with_pairs_of_rotation(values, config.num_key_value_heads)
    return values


def _with_pairs_of_rotation(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring rows, transformers the halves of a head."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))
