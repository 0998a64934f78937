"""Write a tiny Llama model with random weights, in the GGUF format that llama.cpp serves.

It speaks nonsense, a byte or two a token, and that is all that trying out a scheduler needs: it loads in
milliseconds, and nothing is downloaded.

    python make_tiny_gguf.py OUT.gguf [--context 2048] [--width 64] [--layers 2] [--heads 4] [--seed 0]

Needs the package `gguf` from PyPI.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

# In the manner of Hermes and Qwen: llama-server ignores tools if the template does not show them.
CHAT_TEMPLATE = (
    "{% if tools %}system: Call one of{% for tool in tools %} {{ tool | tojson }}{% endfor %}\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Without a few merges llama.cpp takes the tokenizer for a broken one.
MERGES = ("t h", "i n", "e r", "o n", "r e", "a n", "\u0120 t", "\u0120 a")
CONTROL_TOKENS = ("<s>", "</s>")

Weights = npt.NDArray[np.float32]


def byte_tokens() -> list[str]:
    """GPT-2's printable stand-in for each byte, in the order of the bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def add_tokenizer(writer: gguf.GGUFWriter) -> int:
    """Write a byte-level tokenizer; return how many ordinary tokens come before its control tokens."""
    ordinary = byte_tokens() + [merge.replace(" ", "") for merge in MERGES]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*ordinary, *CONTROL_TOKENS])
    writer.add_token_types(
        [gguf.TokenType.NORMAL] * len(ordinary) + [gguf.TokenType.CONTROL] * len(CONTROL_TOKENS)
    )
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(len(ordinary))
    writer.add_eos_token_id(len(ordinary) + 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(ordinary)


def add_shape(writer: gguf.GGUFWriter, shape: argparse.Namespace, *, vocabulary: int) -> None:
    """Write the hyperparameters."""
    writer.add_name("tiny-random-llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(2 * shape.width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def weights(shape: argparse.Namespace, *, ordinary: int) -> Iterator[tuple[str, Weights]]:
    """All tensors by name, drawn from `shape.seed`."""
    generator = np.random.default_rng(shape.seed)
    vocabulary, width, inner = ordinary + len(CONTROL_TOKENS), shape.width, 2 * shape.width

    def draw(*size: int) -> Weights:
        return generator.normal(0.0, 0.3, size).astype(np.float32)

    yield "token_embd.weight", draw(vocabulary, width)
    yield "output_norm.weight", np.ones(width, np.float32)
    head = draw(vocabulary, width)
    head[ordinary:] = 0.0  # control tokens are unlikely, so answers rarely end before max_tokens
    yield "output.weight", head
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{block}.{name}.weight", draw(width, width)
        for name, size in (
            ("ffn_gate", (inner, width)),
            ("ffn_up", (inner, width)),
            ("ffn_down", (width, inner)),
        ):
            yield f"{block}.{name}.weight", draw(*size)
        for name in ("attn_norm", "ffn_norm"):
            yield f"{block}.{name}.weight", np.ones(width, np.float32)


def write_model(path: Path, shape: argparse.Namespace) -> None:
    """Write the whole model; an interrupted run leaves no half a file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    ordinary = add_tokenizer(writer)
    add_shape(writer, shape, vocabulary=ordinary + len(CONTROL_TOKENS))
    for name, tensor in weights(shape, ordinary=ordinary):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def main() -> None:
    """Read the command line and write the model."""
    parser = argparse.ArgumentParser(description="Write a tiny Llama model with random weights as GGUF.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--context", type=int, default=2048, help="longest context in tokens")
    parser.add_argument(
        "--width", type=int, default=64, help="embedding length, a multiple of twice the heads"
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    shape = parser.parse_args()
    if shape.width % (2 * shape.heads):
        parser.error(f"--width {shape.width} is no multiple of twice --heads {shape.heads}")
    write_model(shape.out, shape)


if __name__ == "__main__":
    main()
