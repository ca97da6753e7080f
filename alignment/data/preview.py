"""Show the exact tokens of rows as training receives them, and which tokens have a loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.text import Text

from alignment.config.sections import DataConfig
from alignment.data.encoding import encode_parts, fit_record
from alignment.data.parsing import to_examples
from alignment.data.records import Demonstration, Document
from alignment.data.row_files import BadRow
from alignment.data.sources import open_source
from alignment.templates.rendering import Encoded, Unrenderable
from alignment.terminal import clean, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def each_example(config: DataConfig) -> Iterator[tuple[str, Demonstration | Document]]:
    """Yield the usable examples of `data.train`, as training reads them."""
    for part in config.parts:
        for where, row in open_source(part, config).rows:
            if not isinstance(row, BadRow):
                with contextlib.suppress(BadRow):
                    for example in to_examples(row, part.format or "auto"):
                        yield where, example


def encode_for_preview(
    example: Demonstration | Document, tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> list[Encoded | str]:
    """An example as training receives it (the first chunk of a long document), or the reason why it is left out.

    Several where each answer is a row of its own (`encode_parts`).
    """
    try:
        parts = encode_parts(example, tokenizer)
    except Unrenderable as error:
        return [str(error)]
    return [_fitted(part, encoded, tokenizer, config) for part, encoded in parts]  # type: ignore[arg-type]


def _fitted(
    example: Demonstration | Document, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> Encoded | str:
    if isinstance(example, Document):
        return Encoded(encoded.input_ids[: config.max_length], encoded.loss_mask[: config.max_length])
    fitted = fit_record(example, encoded, tokenizer, config.max_length, config.too_long)
    if fitted is not None:
        return fitted
    limit = f"data.max_length={config.max_length}, data.too_long={config.too_long}"
    return f"{len(encoded.input_ids)} tokens, {encoded.num_response_tokens} of them the answer, are too many ({limit})"


def preview_json(where: str, encoded: Encoded | str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A row as training receives it: ids, tokens, the loss mask, and which tokens are special."""
    if isinstance(encoded, str):
        return {"place": where, "left_out": encoded}
    special = set(tokenizer.all_special_ids)
    return {
        "place": where,
        "ids": encoded.input_ids,
        "tokens": tokenizer.convert_ids_to_tokens(encoded.input_ids),
        "mask": encoded.loss_mask,
        "special": [token_id in special for token_id in encoded.input_ids],
    }


def preview_lines(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, marks: bool) -> Iterator[Text]:
    """A row as styled text: tokens with a loss green (in [[ ]] with `marks`), others dim, special ones reversed."""
    if "left_out" in row:
        yield Text(f"{one_line(row['place'])}: left out: {one_line(row['left_out'])}", style="yellow")
        return
    ids, mask = row["ids"], row["mask"]
    yield Text(f"{one_line(row['place'])}: {len(ids)} tokens, {sum(mask)} trained on", style="bold")
    shown, id_line = Text(), Text("ids:")
    start = 0
    for stop in range(1, len(ids) + 1):
        id_line.append(f" {ids[stop - 1]}", style=_style(mask[stop - 1], False))
        kinds = [(mask[i], row["special"][i]) for i in (stop - 1, stop) if i < len(ids)]
        if len(kinds) == 2 and kinds[0] == kinds[1] and not kinds[0][1]:
            continue  # a character may span several tokens, so a run is decoded at once
        trained, special = kinds[0]
        text = clean(tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False))
        opens = marks and trained and (start == 0 or not mask[start - 1])
        closes = marks and trained and (stop == len(ids) or not mask[stop])
        shown.append(f"{'[[' if opens else ''}{text}{']]' if closes else ''}", style=_style(trained, special))
        start = stop
    yield shown
    yield id_line


def _style(trained: bool, special: bool) -> str:
    return f"{'green' if trained else 'dim'}{' reverse' if special else ''}"
