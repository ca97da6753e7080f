"""The built-in chat templates, by name.

Each ends the prompt with a line break, trims the answer, and marks the assistant's tokens, EOS included, with
{% generation %}. A line break after a block tag is written as an expression, because transformers renders with
trim_blocks, which removes a bare one.
"""

from __future__ import annotations

INPUT_HEADING = "\n\n### Input:\n"
"""Separates an instruction from its input in a user's turn. So the input is a section of its own under the Alpaca
templates, and is rendered in the same place under all others."""

# Tools use the format that Qwen and Hermes models are trained on: a JSON object in <tool_call>.
_CHATML = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{{ '\n\n' }}{% endif %}"
    "# Tools\n\nYou may call these functions:\n<tools>\n"
    "{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}</tools>\n"
    "To call one, answer with its name and arguments as JSON:\n"
    '<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>{{ \'\n\' }}{% endif %}'
    "{% for message in messages %}{% if not (tools and loop.first and message['role'] == 'system') %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n' if message['content'] | trim or not loop.first else '' }}<tool_call>\n"
    "{{ {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}\n</tool_call>"
    "{% endfor %}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ALPACA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Response:\n"
    "{% generation %}{{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}{{ '\n\n' }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% else %}PREAMBLE### INSTRUCTION:\n{{ message['content'] }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
# Stanford's own words (tatsu-lab/stanford_alpaca, train.py), once and in place of a system message; its prompts end
# right after "Response:", ours in a line break, so that no token can span the border to the answer.
_STANFORD_PREAMBLE = (
    "{% if loop.first %}"
    "{% if '" + INPUT_HEADING.replace("\n", "\\n") + "' in message['content'] %}"
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "{% else %}"
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "{% endif %}{% endif %}"
)
_PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] }}\n{% endif %}{% endfor %}"
)

TEMPLATES = {
    "chatml": _CHATML,
    "alpaca": _ALPACA.replace("PREAMBLE", "").replace("INSTRUCTION", "Instructions"),
    "alpaca_stanford": _ALPACA.replace("PREAMBLE", _STANFORD_PREAMBLE).replace("INSTRUCTION", "Instruction"),
    "plain": _PLAIN,
}
