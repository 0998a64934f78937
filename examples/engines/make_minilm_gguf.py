"""Write the sentence encoder all-MiniLM-L6-v2 in the GGUF format that llama.cpp serves.

    sh fetch_minilm.sh DEST && python make_minilm_gguf.py DEST/model OUT.gguf [--rank]

`--rank` adds a head of random weights that scores a query with a document, to try the protocol of rerankers
with: its order means nothing.

Needs the package `gguf` from PyPI.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]

WORD_START = "\u2581"
"""llama.cpp marks the start of a word; BERT's vocabulary marks what continues one, with `##`."""

# BERT's names of tensors, and GGUF's.
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
OF_A_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def read_tensors(path: Path) -> dict[str, Weights]:
    """The tensors of a safetensors file: the length of a JSON header, the header, the data."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(
            data, "<f4", count=int(np.prod(one["shape"])), offset=8 + size + one["data_offsets"][0]
        ).reshape(one["shape"])
        for name, one in header.items()
        if one["dtype"] == "F32"
    }


def renamed(tensors: Mapping[str, Weights], layers: int) -> Iterator[tuple[str, Weights]]:
    """The tensors that llama.cpp needs, by its names."""
    for name, own in EMBEDDINGS.items():
        yield own, tensors[name]
    for layer in range(layers):
        for name, own in OF_A_LAYER.items():
            for part in ("weight", "bias"):
                yield f"blk.{layer}.{own}.{part}", tensors[f"encoder.layer.{layer}.{name}.{part}"]


def rank_head(width: int) -> Iterator[tuple[str, Weights]]:
    """A head that scores, drawn from a fixed seed."""
    generator = np.random.default_rng(0)
    yield "cls.weight", generator.normal(0.0, 0.1, (width, width)).astype(np.float32)
    yield "cls.bias", np.zeros(width, np.float32)
    yield "cls.output.weight", generator.normal(0.0, 0.1, (1, width)).astype(np.float32)
    yield "cls.output.bias", np.zeros(1, np.float32)


def add_tokenizer(writer: gguf.GGUFWriter, vocabulary: list[str]) -> None:
    """Write BERT's tokenizer."""
    special = {word: number for number, word in enumerate(vocabulary) if word.startswith("[")}
    control: set[str] = {name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in special}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_piece(word, control) for word in vocabulary])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if word in control else gguf.TokenType.NORMAL for word in vocabulary]
    )
    writer.add_token_type_count(2)
    writer.add_pad_token_id(special["[PAD]"])
    writer.add_unk_token_id(special["[UNK]"])
    writer.add_bos_token_id(special["[CLS]"])
    writer.add_sep_token_id(special["[SEP]"])
    writer.add_eos_token_id(special["[SEP]"])
    writer.add_mask_token_id(special["[MASK]"])


def _piece(word: str, control: set[str]) -> str:
    if word in control:
        return word
    return word.removeprefix("##") if word.startswith("##") else WORD_START + word


def add_shape(writer: gguf.GGUFWriter, config: Mapping[str, Any], *, rank: bool) -> None:
    """Write the hyperparameters."""
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if rank else gguf.PoolingType.MEAN)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def write_model(source: Path, path: Path, *, rank: bool) -> None:
    """Write the whole model; an interrupted run leaves no half a file at `path`."""
    config = json.loads((source / "config.json").read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(unfinished, "bert")
    add_tokenizer(writer, (source / "vocab.txt").read_text(encoding="utf-8").splitlines())
    add_shape(writer, config, rank=rank)
    tensors = read_tensors(source / "model.safetensors")
    for name, tensor in renamed(tensors, config["num_hidden_layers"]):
        writer.add_tensor(name, _stored(name, tensor))
    for name, tensor in rank_head(config["hidden_size"]) if rank else ():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def _stored(name: str, tensor: Weights) -> npt.NDArray[Any]:
    """Matrices take half the space as 16-bit floats; llama.cpp wants some others with all bits."""
    is_matrix = tensor.ndim > 1 and name not in {"position_embd.weight", "token_types.weight"}
    return tensor.astype(np.float16) if is_matrix else tensor


def main() -> None:
    """Read the command line and write the model."""
    parser = argparse.ArgumentParser(description="Write all-MiniLM-L6-v2 as GGUF.")
    parser.add_argument("source", type=Path, help="the folder with config.json and model.safetensors")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", action="store_true", help="add a head of random weights that scores")
    arguments = parser.parse_args()
    write_model(arguments.source, arguments.out, rank=arguments.rank)


if __name__ == "__main__":
    main()
