"""Tokenizers and chat templates as well-known makers publish them: the same special tokens, ends and BOS, and templates
that behave alike, written anew. The vocabularies are tiny.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are NAME.<|im_end|>\n{% endif %}" + _CHATML
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_INST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ FIRST }}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.index0 % 2 %}{{ raise_exception('roles must alternate') }}{% endif %}{{ EACH }}[INST] "
    "{% if loop.first and system %}{{ SYSTEM }}{% endif %}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ AFTER }}{% endif %}{% endfor %}"
)
_LLAMA2 = (
    _INST.replace("{{ FIRST }}", "")
    .replace("{{ EACH }}", "{{ bos_token }}")
    .replace("{{ SYSTEM }}", "<<SYS>>\n{{ system }}\n<</SYS>>\n\n")
    .replace("{{ AFTER }}", " {{ eos_token }}")
)
_MISTRAL = (
    _INST.replace("{{ FIRST }}", "{{ bos_token }}")
    .replace("{{ EACH }}", "")
    .replace("{{ SYSTEM }}", "{{ system }}\n\n")
    .replace("{{ AFTER }}", "{{ eos_token }}")
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}SYSTEM{% else %}{% set first = '' %}{% set rest = messages %}"
    "{% endif %}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_GEMMA2 = _GEMMA.replace("SYSTEM", "{{ raise_exception('no system role') }}")
_GEMMA3 = _GEMMA.replace("SYSTEM", "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}")
_PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
_PHI4 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
_QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_OLMO2 = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}{% else %}{{ '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_GPT_OSS = (
    "<|start|>system<|message|>You are NAME.<|end|>{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
_FALCON = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ {'system': 'System', 'user': 'User', 'assistant': 'Falcon'}[m.role] }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n' }}Falcon:{% endif %}"
)
_GRANITE = (
    "{% if messages[0].role != 'system' %}<|start_of_role|>system<|end_of_role|>You are NAME.<|end_of_text|>\n"
    "{% endif %}{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
_COHERE = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "<|{{ {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[m.role] }}_TOKEN|>{{ m.content | trim }}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)

_COHERE2 = _COHERE.replace(
    "{{ m.content | trim }}",
    "{% if m.role == 'assistant' %}<|START_RESPONSE|>{{ m.content | trim }}<|END_RESPONSE|>"
    "{% else %}{{ m.content | trim }}{% endif %}",
)


@dataclass(frozen=True)
class Maker:
    """What a maker ships beside the weights.

    `ends` is the right answer: the tokens that end an answer. `end` is what the template writes after the last one.
    """

    template: str
    special: tuple[str, ...]
    ends: tuple[str, ...]
    end: str
    eos: str | None
    bos: str | None = None
    pad: str | None = None
    unk: str | None = None
    generation: tuple[str, ...] = ()
    sentencepiece: bool = False
    writes_bos: bool = False
    takes_system: bool = True


def _qwen(template: str) -> Maker:
    return Maker(
        template, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ("<|im_end|>", "<|endoftext|>"), "<|im_end|>",
        eos="<|im_end|>", pad="<|endoftext|>", generation=("<|im_end|>", "<|endoftext|>"),
    )  # fmt: skip


_GEMMA_TOKENS: dict[str, Any] = {
    "special": ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    "ends": ("<eos>", "<end_of_turn>"), "end": "<end_of_turn>", "eos": "<eos>", "bos": "<bos>", "pad": "<pad>",
    "unk": "<unk>", "sentencepiece": True, "writes_bos": True,
}  # fmt: skip
_LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>",
)  # fmt: skip

MAKERS = {
    "llama-2": Maker(
        _LLAMA2, ("<unk>", "<s>", "</s>"), ("</s>",), "</s>", eos="</s>", bos="<s>", unk="<unk>",
        generation=("</s>",), sentencepiece=True, writes_bos=True,
    ),
    "llama-3": Maker(
        _LLAMA3, _LLAMA3_SPECIAL, ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"), "<|eot_id|>", eos="<|eot_id|>",
        bos="<|begin_of_text|>", generation=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), writes_bos=True,
    ),
    "qwen-2.5": _qwen(_DEFAULT_SYSTEM),
    "qwen-3": _qwen(_QWEN3),
    "gemma-2": Maker(_GEMMA2, takes_system=False, generation=("<eos>",), **_GEMMA_TOKENS),
    "gemma-3": Maker(_GEMMA3, generation=("<eos>", "<end_of_turn>"), **_GEMMA_TOKENS),
    "mistral": Maker(
        _MISTRAL, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), ("</s>",), "</s>", eos="</s>", bos="<s>",
        unk="<unk>", generation=("</s>",), sentencepiece=True, writes_bos=True,
    ),
    "phi-3": Maker(
        _PHI3, ("<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"),
        ("<|endoftext|>", "<|end|>", "<|assistant|>"), "<|end|>", eos="<|endoftext|>", bos="<s>",
        pad="<|endoftext|>", unk="<unk>", generation=("<|endoftext|>", "<|assistant|>", "<|end|>"), sentencepiece=True,
    ),
    "phi-4": Maker(
        _PHI4, ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|dummy_0|>"),
        ("<|im_end|>", "<|endoftext|>"), "<|im_end|>", eos="<|im_end|>", bos="<|endoftext|>", pad="<|dummy_0|>",
        unk="<|endoftext|>", generation=("<|endoftext|>", "<|im_end|>"),
    ),
    "smollm-2": Maker(
        _DEFAULT_SYSTEM, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ("<|im_end|>",), "<|im_end|>",
        eos="<|im_end|>", bos="<|im_start|>", pad="<|im_end|>", unk="<|endoftext|>", generation=("<|im_end|>",),
    ),
    "olmo-2": Maker(
        _OLMO2, ("<|endoftext|>", "<|pad|>"), ("<|endoftext|>",), "<|endoftext|>", eos="<|endoftext|>",
        bos="<|endoftext|>", pad="<|pad|>", unk="<|endoftext|>", generation=("<|endoftext|>",),
    ),
    "gpt-oss": Maker(
        _GPT_OSS,
        ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|call|>", "<|channel|>", "<|start|>", "<|end|>",
         "<|message|>"),
        ("<|return|>", "<|endoftext|>", "<|call|>"), "<|return|>", eos="<|return|>", bos="<|startoftext|>",
        pad="<|endoftext|>", generation=("<|return|>", "<|endoftext|>", "<|call|>"),
    ),
    "deepseek": Maker(
        _DEEPSEEK,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<｜end▁of▁sentence｜>",), "<｜end▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>",
        pad="<｜end▁of▁sentence｜>", generation=("<｜end▁of▁sentence｜>",), writes_bos=True,
    ),
    "falcon": Maker(
        _FALCON, ("<|endoftext|>", ">>TITLE<<"), ("<|endoftext|>",), "", eos="<|endoftext|>",
        generation=("<|endoftext|>",),
    ),
    "granite": Maker(
        _GRANITE, ("<|end_of_text|>", "<fim_prefix>", "<|start_of_role|>", "<|end_of_role|>"), ("<|end_of_text|>",),
        "<|end_of_text|>", eos="<|end_of_text|>", bos="<|end_of_text|>", pad="<|end_of_text|>", unk="<|end_of_text|>",
        generation=("<|end_of_text|>",),
    ),
    "cohere": Maker(
        _COHERE,
        ("<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
         "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        ("<|END_OF_TURN_TOKEN|>",), "<|END_OF_TURN_TOKEN|>", eos="<|END_OF_TURN_TOKEN|>", bos="<BOS_TOKEN>",
        pad="<PAD>", unk="<UNK>", generation=("<|END_OF_TURN_TOKEN|>",), writes_bos=True,
    ),
    "cohere-2": Maker(
        _COHERE2,
        ("<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
         "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ("<|END_OF_TURN_TOKEN|>",), "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", eos="<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>", pad="<PAD>", unk="<UNK>", generation=("<|END_OF_TURN_TOKEN|>",), writes_bos=True,
    ),
    "glm-4": Maker(
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        ("<|endoftext|>", "<|user|>", "<|observation|>"), "", eos="<|endoftext|>", pad="<|endoftext|>",
        generation=("<|endoftext|>", "<|user|>", "<|observation|>"),
    ),
    "gpt-2": Maker(
        _FALCON.replace("Falcon", "Assistant"), ("<|endoftext|>",), ("<|endoftext|>",), "", eos="<|endoftext|>",
        bos="<|endoftext|>", unk="<|endoftext|>", generation=("<|endoftext|>",),
    ),
}  # fmt: skip


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """As `AutoTokenizer` gives it for that maker's models."""
    maker = MAKERS[name]
    if maker.sentencepiece:
        tokenizer = Tokenizer(models.BPE(unk_token=maker.unk, byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        first = [*maker.special, *(f"<0x{byte:02X}>" for byte in range(256))]
        alphabet: list[str] = []
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        first, alphabet = list(maker.special), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + len(alphabet) + 60, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tiny.CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in maker.special]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if maker.writes_bos and maker.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{maker.bos} $A", special_tokens=[(maker.bos, tokenizer.token_to_id(maker.bos))]
        )
    roles = {"eos_token": maker.eos, "bos_token": maker.bos, "pad_token": maker.pad, "unk_token": maker.unk}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in roles.items() if v})
    made.chat_template = maker.template
    return made


def publish(name: str, folder: Path) -> Path:
    """A tiny Llama with the maker's tokenizer and generation config, as a folder from the hub."""
    import transformers

    maker, tokenizer = MAKERS[name], make_tokenizer(name)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in maker.generation]
    model = tiny.make_policy(tokenizer)
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=tokenizer.pad_token_id, do_sample=True,
        temperature=0.6, top_p=0.9,
    )  # fmt: skip
    return tiny.write(folder, model, tokenizer)
