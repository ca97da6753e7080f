"""The prompt and the answers on the rating screen, rendered or raw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from textual.widgets import Static

from alignment.labeling import tui_text
from alignment.labeling.rendering import screen
from alignment.labeling.rendering.reading import ItemMarkdown, read_item
from alignment.labeling.session import Sitting


class ItemTexts:
    """What the texts of a sitting's assignment are, and how they are shown: as `sitting.view` says."""

    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting
        self._markdown = ItemMarkdown()

    @property
    def formatted(self) -> bool:
        """Whether there are two ways to show them."""
        return self._markdown.formatted

    def read(self) -> None:
        """See what there is to render in a new assignment; what looks other than raw is rendered at first."""
        item = self._sitting.assignment
        self._markdown = ItemMarkdown() if item is None else read_item(item.prompt, item.completions)
        self._sitting.view = "rendered" if self.formatted else "raw"

    def draw(self, messages: Static, boxes: Iterable[Static]) -> None:
        """Put them into widgets; those that are left over disappear."""
        item = self._sitting.assignment
        assert item is not None
        rendered = self._sitting.view == "rendered"
        conversation = screen.conversation(item.prompt, self._markdown.prompt) if rendered else None
        messages.update(conversation or tui_text.conversation(item.prompt))
        for index, box in enumerate(boxes):
            box.display = index < len(item.completions)
            tokens = self._markdown.completions[index] if rendered and box.display else None
            if tokens is not None:
                box.update(screen.blocks(tokens))
            else:
                box.update(tui_text.body(item.completions[index]) if box.display else "")

    def marks(self) -> Iterator[str]:
        """What the labeler is told of the view."""
        if self._markdown.note:
            yield f"[raw: {self._markdown.note}]"
        elif self.formatted and self._sitting.view == "raw":
            yield "[raw]"
