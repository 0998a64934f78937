"""Write a small Llama model with random weights and a tokenizer of its own, for vLLM.

    python make_tiny_hf.py FOLDER [--width 64] [--layers 2]

What it says makes no sense; how it is served does. Run it with the Python of the environment that vLLM is in
(see install_vllm.sh): it needs torch and transformers, and no model hub. The default has some 150,000
weights; `--width 512 --layers 8` has some 17 million: computing then takes longer than talking about it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 512
CONTEXT = 4096
HEAD_WIDTH = 32
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Prompts of many priorities wait in a queue and go to the engine in batches.",
    "Why is the sky blue? Because short waves are scattered more than long ones.",
)
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT,
        **SPECIAL_TOKENS,
    )
    made.chat_template = TEMPLATE
    return made


def make_model(*, vocabulary: int, width: int, layers: int) -> LlamaForCausalLM:
    """A Llama of that size; the weights are the same each time."""
    torch.manual_seed(0)
    heads = max(1, width // HEAD_WIDTH)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
        dtype=torch.float32,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=64, help="of the hidden layers, a multiple of 32")
    parser.add_argument("--layers", type=int, default=2)
    given = parser.parse_args()
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(given.folder)
    model = make_model(vocabulary=len(tokenizer), width=given.width, layers=given.layers)
    model.save_pretrained(given.folder)
    print(f"{given.folder}: {model.num_parameters():,} weights")


if __name__ == "__main__":
    main()
