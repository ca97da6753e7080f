"""The screen on which a labeler rewrites an answer, or comments on one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Footer, TextArea
from textual.widgets.text_area import Edit, EditResult

from alignment.terminal import clean


class SafeTextArea(TextArea):
    """Lines of text in which a paste cannot bring control characters to the screen."""

    def edit(self, edit: Edit) -> EditResult:
        """Change the text; typing and pasting come by here too."""
        return super().edit(replace(edit, text=clean(edit.text)))


class Writing(ModalScreen[dict[int, str]]):
    """One text for each answer, one at a time; returns all of them as they are when it is closed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Done", key_display="Esc", priority=True),
        Binding("tab", "turn(1)", "Next answer", key_display="Tab", priority=True),
        Binding("shift+tab", "turn(-1)", "Answer before", show=False, priority=True),
        Binding("ctrl+r", "again", "As it was", key_display="Ctrl+R", priority=True),
    ]

    def __init__(self, title: str, names: Sequence[str], originals: Sequence[str], texts: Sequence[str]) -> None:
        """`originals` are what Ctrl+R goes back to, `texts` what is written by now."""
        super().__init__()
        self._title, self._names, self._originals = title, names, [clean(text) for text in originals]
        self._texts = [clean(text) for text in texts]
        self._place = 0

    def compose(self) -> ComposeResult:
        with Vertical(id="writing") as panel:
            panel.border_title = Content(self._title)
            yield SafeTextArea(self._texts[0], id="text", soft_wrap=True)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self._show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Tab is for several answers alone."""
        return len(self._texts) > 1 if action == "turn" else True

    def action_turn(self, step: int) -> None:
        self._keep()
        self._place = (self._place + step) % len(self._texts)
        self._show()

    def action_again(self) -> None:
        self._texts[self._place] = self._originals[self._place]
        self._show()

    def action_close(self) -> None:
        self._keep()
        self.dismiss(dict(enumerate(self._texts)))

    def _keep(self) -> None:
        self._texts[self._place] = self.query_one(SafeTextArea).text

    def _show(self) -> None:
        area = self.query_one(SafeTextArea)
        area.load_text(self._texts[self._place])
        area.border_title = Content(self._names[self._place])
        area.focus()
