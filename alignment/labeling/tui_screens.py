"""The screens over the rating screen: help, rewriting answers, comments on them, marking what is wrong in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Footer, Static, TextArea
from textual.widgets.text_area import Edit, EditResult

from alignment.labeling.marking import Mark, in_lines, stored_span
from alignment.terminal import clean

KEEP_SECONDS = 0.5
"""How often what is being written is handed on, so that a kill loses less than a line."""
SCROLL = ("down", "j", "pagedown", "up", "k", "pageup", "home", "end")


class Text(Static):
    """Text that is shown as it is; it comes through `clean` or is our own."""

    def __init__(self, text: str | Content = "", **named: Any) -> None:
        super().__init__(text, markup=False, **named)


class Help(ModalScreen[None]):
    """The guideline and the keys; any key that does not scroll closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j,space,pagedown", "scroll(1)", "Down", key_display="j"),
        Binding("up,k,pageup", "scroll(-1)", "Up", key_display="k"),
        Binding("enter", "close", "Close", key_display="any other key"),
    ]

    def __init__(self, guideline: str, keys: Content) -> None:
        super().__init__()
        self._guideline, self._keys = guideline, keys

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help", can_focus=False) as panel:
            panel.border_title = "Help"
            if self._guideline.strip():
                yield Text("What to prefer", classes="heading")
                yield Text(clean(self._guideline).strip("\n"))
            yield Text("Keys", classes="heading")
            yield Text(self._keys)
        yield Footer(show_command_palette=False)

    def action_scroll(self, pages: int) -> None:
        panel = self.query_one("#help")
        panel.scroll_relative(y=pages * max(1, panel.size.height // 2), animate=False)

    def action_close(self) -> None:
        self.dismiss()

    def on_key(self, event: events.Key) -> None:
        if event.key not in (*SCROLL, "space"):
            event.stop()
            self.dismiss()


class SafeTextArea(TextArea):
    """Lines of text in which a paste cannot bring control characters to the screen."""

    def edit(self, edit: Edit) -> EditResult:
        """Change the text; typing and pasting come by here too."""
        return super().edit(replace(edit, text=clean(edit.text)))


class Writing(ModalScreen[dict[int, str]]):
    """One text for each answer, one at a time; returns all of them as they are when it is closed, and hands on each
    that changed before that.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Done", key_display="Esc", priority=True),
        Binding("tab", "turn(1)", "Next answer", key_display="Tab", priority=True),
        Binding("shift+tab", "turn(-1)", "Answer before", show=False, priority=True),
        Binding("ctrl+r", "again", "As it was", key_display="Ctrl+R", priority=True),
    ]

    def __init__(
        self,
        title: str,
        names: Sequence[str],
        originals: Sequence[str],
        texts: Sequence[str],
        hand_on: Callable[[int, str], None],
    ) -> None:
        """`originals` are what Ctrl+R goes back to, `texts` what is written by now."""
        super().__init__()
        self._hand_on = hand_on
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
        self.set_interval(KEEP_SECONDS, self._tell)

    def _tell(self) -> None:
        before = self._texts[self._place]
        self._keep()
        if self._texts[self._place] != before:
            self._hand_on(self._place, self._texts[self._place])

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


class Marking(ModalScreen[dict[int, list[Mark]]]):
    """An answer at a time, in which passages are selected and marked; returns the marks of all when it is closed, and
    hands on those of an answer with each change.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Done", key_display="Esc", priority=True),
        Binding("tab", "turn(1)", "Next answer", key_display="Tab", priority=True),
        Binding("shift+tab", "turn(-1)", "Answer before", show=False, priority=True),
        Binding("backspace", "drop", "Last mark away", key_display="Backspace", priority=True),
        *(Binding(str(number), f"mark({number})", show=False, priority=True) for number in range(1, 10)),
    ]

    def __init__(
        self,
        names: Sequence[str],
        texts: Sequence[str],
        kinds: Sequence[str],
        marks: Mapping[int, Sequence[Mark]],
        hand_on: Callable[[int, list[Mark]], None],
    ) -> None:
        super().__init__()
        self._hand_on = hand_on
        self._names, self._texts, self._kinds = names, texts, kinds
        self._marks = {place: list(marks.get(place, ())) for place in range(len(texts))}
        self._place = 0

    def compose(self) -> ComposeResult:
        with Vertical(id="writing") as panel:
            panel.border_title = Content(" Select what is wrong, then press its number ")
            yield SafeTextArea("", id="text", read_only=True)
            yield Text(id="kinds")
            yield Text(id="marked")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self._turn_to(0)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Tab is for several answers alone, and there are as many numbers as kinds."""
        if action == "mark":
            return int(str(parameters[0])) <= len(self._kinds)
        return len(self._texts) > 1 if action == "turn" else True

    def action_turn(self, step: int) -> None:
        self._turn_to((self._place + step) % len(self._texts))

    def action_mark(self, number: int) -> None:
        area, text = self.query_one(SafeTextArea), self._texts[self._place]
        lengths = [len(line) + 1 for line in clean(text).split("\n")]
        start, end = sorted(sum(lengths[:row]) + column for row, column in area.selection)
        mark = (*stored_span(text, start, end), self._kinds[number - 1])
        if start < end and mark not in self._marks[self._place]:
            self._marks[self._place].append(mark)
            self._hand_on(self._place, sorted(self._marks[self._place]))
        self._show_marks()

    def action_drop(self) -> None:
        if self._marks[self._place]:
            self._marks[self._place].pop()
            self._hand_on(self._place, sorted(self._marks[self._place]))
        self._show_marks()

    def action_close(self) -> None:
        self.dismiss({place: sorted(marks) for place, marks in self._marks.items()})

    def _turn_to(self, place: int) -> None:
        self._place = place
        area = self.query_one(SafeTextArea)
        area.load_text(clean(self._texts[place]))
        area.border_title = Content(self._names[place])
        area.focus()
        kinds = "   ".join(f"{number} {kind}" for number, kind in enumerate(self._kinds, 1))
        self.query_one("#kinds", Text).update(Content(kinds))
        self._show_marks()

    def _show_marks(self) -> None:
        lines = in_lines(self._texts[self._place], self._marks[self._place], self._kinds)
        self.query_one("#marked", Text).update(Content("\n".join(lines) or "nothing is marked"))
