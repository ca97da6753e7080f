"""The chat's screen in a terminal, with Textual: the conversation, two answers side by side, and the keys."""

from __future__ import annotations

from typing import ClassVar, Literal

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Footer, Input, Static

from alignment.errors import UserError
from alignment.evaluation.chat import Dialogue
from alignment.ratings import RatingsStore
from alignment.terminal import clean, one_line

Choice = Literal["left", "right", "tie", "skip"]
CHOICES: dict[str, Choice] = {"1": "left", "2": "right", "0": "tie", "s": "skip"}
ASK = "Ask something; /help shows the commands"
CHOOSE = "Which is better?  1 left   2 right   0 equal   s skip"
HELP = (
    "/system TEXT sets the system prompt   /temperature 0.7   /tokens 256   /new begins anew   /quit\n"
    "Ctrl+R draws the answer again   Ctrl+E takes the last question back to edit it   Esc stops an answer"
)


class Said(Static):
    """A turn, shown as it is: no markup, no control characters."""

    def __init__(self, who: str, text: str) -> None:
        super().__init__(clean(text), markup=False, classes=who)


class ChatApp(App[int]):
    """A dialogue on a screen; with two models, each pair of answers waits for a choice.

    Args:
        store: gets the choices; None: they only steer the conversation.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "Chat"
    CSS_PATH = "chat.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, f"choose('{choice}')", show=False) for key, choice in CHOICES.items()),
        Binding("ctrl+r", "again", "Draw again", priority=True),
        Binding("ctrl+e", "edit", "Edit", priority=True),
        Binding("escape", "stop", "Stop", priority=True),
        Binding("ctrl+c,ctrl+d,ctrl+q", "leave", "Quit", key_display="^d", priority=True),
    ]

    def __init__(self, dialogue: Dialogue, store: RatingsStore | None = None, labeler: str = "") -> None:
        super().__init__()
        self.dialogue, self.store, self.labeler = dialogue, store, labeler
        self.answering = False
        self._stop = False

    def compose(self) -> ComposeResult:
        yield VerticalScroll(id="said", can_focus=False)
        with Horizontal(id="answers"):
            for place in range(len(self.dialogue.speakers)):
                with VerticalScroll(classes="answer", can_focus=False):
                    yield Static(markup=False, id=f"answer-{place}")
        yield Static(markup=False, id="note")
        yield Input(placeholder=ASK, id="question", max_length=20_000)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self._show()

    # --- what a person does -----------------------------------------------------------------------------------------

    def on_input_submitted(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        if self.answering or self.dialogue.waiting or not text:
            return
        event.input.value = ""
        if text.startswith("/"):
            self._command(text)
            return
        self.dialogue.ask(text)
        self._answer()

    def action_choose(self, choice: Choice) -> None:
        if not self.dialogue.waiting:
            return
        try:
            who = self.dialogue.choose(choice, self.store, self.labeler)
        except UserError as error:
            self._note(one_line(str(error)))
            return
        kept = " (kept)" if self.store is not None and choice != "skip" else ""
        self._show(f"{who}{kept}")

    def action_again(self) -> None:
        if self.answering or not self.dialogue.turns:
            return
        self.dialogue.ask(self.dialogue.take_back())
        self._answer()

    def action_edit(self) -> None:
        if self.answering or not self.dialogue.turns:
            return
        question = self.dialogue.take_back()
        self._show()
        line = self.query_one(Input)
        line.value = question
        line.cursor_position = len(question)

    def action_stop(self) -> None:
        self._stop = True

    def action_leave(self) -> None:
        self._stop = True  # else the thread that draws would hold the process
        self.exit(0)

    def _command(self, text: str) -> None:
        name, _, rest = text[1:].partition(" ")
        settings, rest = self.dialogue.settings, rest.strip()
        try:
            if name == "system":
                self.dialogue.system = rest
                self.dialogue.clear()
                self._show("a new conversation, under this system prompt" if rest else "no system prompt")
            elif name == "temperature":
                settings.temperature = _number(rest, 0.0, 100.0)
                self._note(f"temperature {settings.temperature:g}")
            elif name == "tokens":
                settings.max_new_tokens = int(_number(rest, 1, 1_000_000))
                self._note(f"at most {settings.max_new_tokens} tokens an answer")
            elif name == "new":
                self.dialogue.clear()
                self._show("a new conversation")
            elif name == "quit":
                self.action_leave()
            else:
                self._note(HELP)
        except ValueError:
            self._note(f"{text}: expected a number, as in /{name} {settings.temperature:g}")

    # --- answers ----------------------------------------------------------------------------------------------------

    @work(thread=True, exclusive=True)
    def _answer(self) -> None:
        """Let the models answer in a thread; what they write is shown as it comes."""
        self._stop = False
        self.call_from_thread(self._begin)
        try:
            self.dialogue.answer(self._heard)
            problem = ""
        except UserError as error:
            self.dialogue.take_back()
            problem = one_line(str(error))
        if self.is_running:
            self.call_from_thread(self._end, problem)

    def _heard(self, place: int, text: str) -> bool:
        if self.is_running and not self._stop:
            self.call_from_thread(self._write, place, text)
        return self._stop

    def _write(self, place: int, text: str) -> None:
        box = self.query_one(f"#answer-{place}", Static)
        box.update(clean(text))
        if isinstance(box.parent, VerticalScroll):
            box.parent.scroll_end(animate=False)

    def _begin(self) -> None:
        self.answering = True
        self._show("writing ...")

    def _end(self, problem: str) -> None:
        self.answering = False
        self._show(problem)

    # --- drawing ----------------------------------------------------------------------------------------------------

    def _show(self, note: str = "") -> None:
        """The turns so far; the answers have their own boxes while they are written or wait for a choice."""
        said = self.query_one("#said", VerticalScroll)
        said.remove_children()
        for message in self.dialogue.messages():
            said.mount(Said(message["role"], message["content"]))
        said.scroll_end(animate=False)
        choosing = bool(self.dialogue.waiting)
        self.query_one("#answers").display = self.answering or choosing
        for place, answer in enumerate(self.dialogue.waiting or [None] * len(self.dialogue.speakers)):
            self._write(place, "" if answer is None else answer.text or "(an empty answer)")
            box = self.query_one(f"#answer-{place}", Static).parent
            if len(self.dialogue.speakers) > 1 and box is not None:
                box.border_title = ("LEFT", "RIGHT")[place]  # type: ignore[attr-defined]
        line = self.query_one(Input)
        line.disabled = choosing or self.answering
        if not line.disabled:
            line.focus()
        else:
            self.set_focus(None)
        self._note(CHOOSE if choosing else note)

    def _note(self, text: str) -> None:
        self.query_one("#note", Static).update(clean(text))


def _number(text: str, least: float, most: float) -> float:
    value = float(text)
    if not least <= value <= most:
        raise ValueError(text)
    return value
