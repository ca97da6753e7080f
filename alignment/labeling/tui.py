"""The rating screen: prompt, answers and keys in a terminal, with Textual.

Everything from the data goes through `clean` and is put into widgets as text: Textual drops only some control
characters, and neither ESC nor C1, and would read `[markup]`.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from functools import partial
from typing import ClassVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Footer, Input

from alignment.labeling import tui_text
from alignment.labeling.asking import TextKind, name_of
from alignment.labeling.marking import Mark
from alignment.labeling.session import Sitting, State
from alignment.labeling.tui_item import ItemTexts
from alignment.labeling.tui_screens import SCROLL, Help, Marking, Text, Writing
from alignment.ratings import Assignment, Order, RatingsStore, View
from alignment.terminal import clean

MOST_ANSWERS = 9
DEAF_SECONDS = 0.15  # a key that comes sooner after a new item was meant for the one before
SIGNALS = {signal.SIGTERM: 143, signal.SIGHUP: 129}
_LEAVE = ("q", "ctrl+c", "ctrl+d", "ctrl+q")


class CommentInput(Input):
    """A line of text in which a paste cannot bring control characters to the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Keep", key_display="Enter"),
        Binding("escape", "app.drop_comment", "Drop", key_display="Esc"),
    ]

    def replace(self, text: str, start: int, end: int) -> None:
        """Put text in the place of some; typing and pasting come by here too."""
        super().replace(clean(text), start, end)


class RatingApp(App[int]):
    """One labeler's screen on a `Sitting`; leaves with an exit status."""

    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    AUTO_FOCUS = None
    TITLE = "Rating"
    CSS_PATH = "tui.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "scroll('answers', 1)", "Scroll", key_display="j/k"),
        Binding("up,k", "scroll('answers', -1)", show=False),
        Binding("space,pagedown", "page('answers', 1)", show=False),
        Binding("pageup", "page('answers', -1)", show=False),
        Binding("home", "page('answers', -1000)", show=False),
        Binding("end", "page('answers', 1000)", show=False),
        Binding("J,shift+down", "scroll('prompt', 1)", "Prompt", key_display="J/K"),
        Binding("K,shift+up", "scroll('prompt', -1)", show=False),
        *(Binding(key, f"press('{key}')", show=False) for key in "123456789"),
        Binding("b", "press('b')", show=False),
        Binding("left", "press('left')", show=False),
        Binding("right", "press('right')", show=False),
        Binding("equals_sign", "press('=')", show=False),
        Binding("backspace", "press('backspace')", show=False),
        Binding("enter", "press('enter')", show=False),
        Binding("r", "show('raw')", "Raw"),
        Binding("r", "show('rendered')", "Rendered"),
        Binding("s", "skip", "Skip"),
        Binding("f", "flag", "Flag"),
        Binding("c", "comment", "Comment"),
        Binding("e", "write('rewrites')", "Rewrite"),
        Binding("m", "write('comments')", "Notes"),
        Binding("x", "mark", "Mark"),
        Binding("u", "undo", "Undo"),
        Binding("question_mark", "help", "Help"),
        Binding("q", "leave", "Quit"),
        Binding("ctrl+d", "leave", show=False),
        Binding("ctrl+c,ctrl+q", "leave", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
    ]

    def __init__(self, sitting: Sitting) -> None:
        super().__init__()
        self.sitting = sitting
        self.deaf_until = math.inf  # monotonic time up to which keys are dropped; what is new is not on the screen yet
        self._last_key = ""
        self._on_screen: tuple[State, Assignment | None] | None = None
        self._texts = ItemTexts(sitting)
        self._question = ""

    def compose(self) -> ComposeResult:
        with Horizontal(id="top"):
            yield Text(id="position")
            yield Text(self.sitting.labeler, id="who")
        with VerticalScroll(id="prompt", can_focus=False):
            yield Text(id="messages")
        with VerticalScroll(id="answers", can_focus=False):
            for _ in range(MOST_ANSWERS):  # made once: a screen that grows with each item would slow down
                yield Text(classes="answer")
        yield Text(id="end")
        yield Text(id="question")
        with Horizontal(id="choices"):
            for name in ("toward-left", "middle", "toward-right"):
                yield Text(id=name)
        yield Text(id="reasons")
        with Horizontal(id="status"):
            yield Text(id="said")
            yield Text(id="marks")
        yield CommentInput(id="comment", placeholder="Comment; Enter keeps it, Esc drops it", max_length=2000)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for stop, status in SIGNALS.items():  # else a `kill` would leave the labeler's shell without echo
            loop.add_signal_handler(stop, self.exit, status)
        self.query_one("#comment").display = False
        self.draw()
        if (
            self.sitting.progress.done == 0
            and self.sitting.assignment
            and self.sitting.store.settings.guideline.strip()
        ):
            self.action_help()

    async def on_event(self, event: events.Event) -> None:
        """Drop keys that were typed before the item that they would rate was on the screen.

        A key comes by twice: on its way to the screen, and back, when it acts. Two keys typed together may both be on
        their way before the first one acts.
        """
        if isinstance(event, events.Key) and event.key not in _LEAVE:
            if event.time < self.deaf_until:
                if event.key == self._last_key:  # a key held down
                    self.deaf_until = max(self.deaf_until, event.time + DEAF_SECONDS)
                return
            self._last_key = event.key
        await super().on_event(event)

    def on_resize(self) -> None:
        self.call_later(self.draw)  # by then the app knows its new size
        self.call_after_refresh(self._mark_prompt)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Which keys do something now; the footer shows those alone."""
        if self.query_one("#comment").display and action != "drop_comment" and action != "leave":
            return False
        state = self.sitting.state
        if action in ("press", "skip", "flag", "comment"):
            return state == "rate"
        if action in ("write", "mark"):
            asked = self.sitting.questionnaire
            kind = parameters[0] if parameters else "spans"
            return state == "rate" and bool(
                {"rewrites": asked.rewrite, "comments": asked.comments}.get(str(kind), asked.spans)
            )
        if action in ("scroll", "page"):
            return state != "end" and (parameters[0] != "prompt" or self.query_one("#prompt").max_scroll_y > 0)
        if action == "show":
            return self._texts.formatted and parameters[0] != self.sitting.view
        return state != "wait" if action == "undo" else True

    # --- keys -------------------------------------------------------------------------------------------------------

    def action_press(self, key: str) -> None:
        self.sitting.press(key)
        self.draw()

    def on_key(self, event: events.Key) -> None:
        """A letter may be a reason; and where the sitting waits any key goes on, except those that look around."""
        looks = (*SCROLL, *_LEAVE, "question_mark", "J", "K", *["r"] * self._texts.formatted)
        if self.sitting.state == "rate" and self.sitting.tag(event.key):
            event.stop().prevent_default()
            self.draw()
        elif self.sitting.state == "wait" and event.key not in looks:
            event.stop().prevent_default()
            self.sitting.go_on()
            self.draw()

    def action_skip(self) -> None:
        self.sitting.skip()
        self.draw()

    def action_undo(self) -> None:
        self.sitting.undo()
        self.draw()

    def action_flag(self) -> None:
        self.sitting.flag()
        self.draw()

    def action_comment(self) -> None:
        line = self.query_one(CommentInput)
        line.value = self.sitting.draft.comment
        self._show_comment(True)
        line.focus()

    def action_drop_comment(self) -> None:
        self._show_comment(False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._show_comment(False)
        self.sitting.comment(event.value)
        self.draw()

    def action_write(self, kind: TextKind) -> None:
        """Rewrite answers, or comment on them, on a screen of its own."""
        assignment, given = self.sitting.assignment, self.sitting.draft.texts[kind]
        assert assignment is not None
        answers = assignment.completions if kind == "rewrites" else [""] * len(assignment.completions)
        names = [name_of(assignment.kind, place) or "ANSWER" for place in range(len(answers))]
        texts = [given.get(place, answers[place]) for place in range(len(answers))]

        def keep(written: dict[int, str] | None) -> None:
            for place, text in (written or {}).items():
                self.sitting.write(kind, place, text)
            self._be_deaf()
            self.draw()

        self.push_screen(
            Writing(tui_text.WRITING[kind], names, answers, texts, partial(self.sitting.write, kind)), keep
        )

    def action_mark(self) -> None:
        """Mark what is wrong in the answers, on a screen of its own."""
        assignment = self.sitting.assignment
        assert assignment is not None
        names = [name_of(assignment.kind, place) or "ANSWER" for place in range(len(assignment.completions))]

        def keep(marked: dict[int, list[Mark]] | None) -> None:
            for place, marks in (marked or {}).items():
                self.sitting.mark(place, marks)
            self._be_deaf()
            self.draw()

        kinds, marks = self.sitting.questionnaire.spans, self.sitting.draft.marks
        self.push_screen(Marking(names, assignment.completions, kinds, marks, self.sitting.mark), keep)

    def action_help(self) -> None:
        kind = self.sitting.assignment.kind if self.sitting.assignment else "pair"
        keys = tui_text.key_table(kind, self.sitting.questionnaire)
        self.push_screen(Help(self.sitting.store.settings.guideline, keys), self._help_closed)

    def _help_closed(self, _: None) -> None:
        self._be_deaf()
        self.call_after_refresh(self._mark_prompt)  # the terminal may have another size now
        if self.sitting.progress.done == 0:
            self.sitting.seen()  # to read the guideline is no part of judging the first item

    def action_leave(self) -> None:
        self.exit(0)

    def action_show(self, view: View) -> None:
        """Show the texts as they were written, or rendered."""
        self.sitting.view = view
        self._draw_texts()
        self.draw()
        self.refresh_bindings()
        self.call_after_refresh(self._mark_prompt)

    def action_scroll(self, what: str, lines: int) -> None:
        self.query_one(f"#{what}").scroll_relative(y=2 * lines, animate=False)

    def action_page(self, what: str, pages: int) -> None:
        area = self.query_one(f"#{what}")
        area.scroll_relative(y=pages * max(1, area.size.height - 2), animate=False)

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Show what the sitting is at."""
        sitting, width = self.sitting, self.size.width
        now = (sitting.state, sitting.assignment)
        if now != self._on_screen:
            before = self._texts.formatted
            if self._on_screen is None or self._on_screen[1] != sitting.assignment:
                self._texts.read()
            if self._on_screen is None or self._on_screen[0] != sitting.state or self._texts.formatted != before:
                self.refresh_bindings()  # makes the footer anew
            self._on_screen = now
            self._draw_item(sitting.assignment)
            self.deaf_until = math.inf
            self.call_after_refresh(self._shown)
        elif sitting.question != self._question:  # a key held down must not answer the next question too
            self.deaf_until = math.inf
            self.call_after_refresh(self._be_deaf)
        self._question = sitting.question
        text = {name: self.query_one(f"#{name}", Text) for name in ("position", "said", "marks")}
        text["position"].update(tui_text.position_line(sitting.progress, width))
        text["said"].update("" if sitting.state == "wait" else sitting.said)
        text["said"].set_class(sitting.failed, "failed")
        marks = ""
        if sitting.assignment is not None:
            self._draw_choices(sitting.assignment, width)
            marks = "  ".join([*self._texts.marks(), tui_text.marks(sitting.draft)]).strip()
        text["marks"].update(marks)
        self._draw_questions(sitting.state == "rate")

    def _draw_item(self, assignment: Assignment | None) -> None:
        for name in ("prompt", "answers", "choices"):
            self.query_one(f"#{name}").display = assignment is not None
        end = self.query_one("#end", Text)
        end.display = assignment is None
        if assignment is None:
            end.update(tui_text.end(self.sitting.progress, self.sitting.nothing))
            return
        self._draw_texts()
        for index, box in enumerate(self.query(".answer").results(Text)):
            box.set_class(assignment.kind == "pair" and index == 0, "left")
            box.set_class(assignment.kind == "pair" and index == 1, "right")
            box.set_class(assignment.kind == "single", "single")
        self.query_one("#answers").scroll_home(animate=False)
        # The end of a long conversation is what is answered.
        self.call_after_refresh(self.query_one("#prompt").scroll_end, animate=False)

    def _draw_texts(self) -> None:
        self._texts.draw(self.query_one("#messages", Text), self.query(".answer").results(Text))

    def _draw_questions(self, asked: bool) -> None:
        """What is asked now, and the reasons; nothing of an item with the one choice alone."""
        sitting = self.sitting
        shown = {
            "question": Content.styled(sitting.question, "bold") if asked else tui_text.NOTHING,
            "reasons": tui_text.NOTHING,
        }
        if asked and sitting.questionnaire.tags:
            shown["reasons"] = tui_text.reasons_line(sitting.questionnaire.tags, sitting.draft.tags)
        for name, text in shown.items():
            box = self.query_one(f"#{name}", Text)
            box.display = bool(text)
            box.update(text)

    def _draw_choices(self, assignment: Assignment, width: int) -> None:
        across = tui_text.columns(len(assignment.completions), width)
        self.query_one("#answers").styles.grid_size_columns = across
        ranking, step = self.sitting.draft.ranking, self.sitting.draft.step
        if self.sitting.state == "wait":
            texts = tui_text.wait_choices(self.sitting.said, self.sitting.waits_for)
        elif step is not None:
            texts = tui_text.pair_choices(width, False) if step.place is None else tui_text.single_choices(width, "")
        elif assignment.kind == "pair":
            texts = tui_text.pair_choices(width)
        elif assignment.kind == "rank":
            texts = tui_text.rank_choices(ranking, width)
        else:
            texts = tui_text.single_choices(width, *[""] * bool(self._question))
        self.query_one("#choices").set_class(self.sitting.state == "wait", "told")  # else a long text would be cut
        for box, text in zip(self.query("#choices > Text").results(Text), texts, strict=True):
            box.display = bool(text)
            box.update(text)
        for number, box in enumerate(self.query(".answer").results(Text), 1):
            box.set_class(number in ranking.placed, "placed")
            if assignment.kind == "pair":
                box.border_title = Content("LEFT" if number == 1 else "RIGHT")
            elif assignment.kind == "rank":
                box.border_title = Content(tui_text.rank_title(number, ranking))
            else:
                box.border_title = Content("ANSWER")

    def _show_comment(self, shown: bool) -> None:
        self.query_one("#comment").display = shown
        if not shown:
            self.set_focus(None)
        self.refresh_bindings()

    def _shown(self) -> None:
        self._mark_prompt()
        self.sitting.seen()
        self._be_deaf()

    def _mark_prompt(self) -> None:
        """Say that there is more of the prompt, and offer the keys, where it does not fit."""
        prompt = self.query_one("#prompt")
        subtitle = "K scrolls up" if prompt.max_scroll_y else ""
        if prompt.border_subtitle != subtitle:
            prompt.border_subtitle = subtitle
            self.refresh_bindings()

    def _be_deaf(self) -> None:
        self.deaf_until = time.monotonic() + DEAF_SECONDS


def run(store: RatingsStore, labeler: str, order: Order = "random", limit: int | None = None) -> int:
    """Let a labeler rate on the whole terminal; returns the exit status, 0 unless a signal ended it."""
    return RatingApp(Sitting(store, labeler, order, limit)).run() or 0
