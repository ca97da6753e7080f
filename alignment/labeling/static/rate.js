// Hotkeys, the time the page was looked at, and ranking by picking. The page works without any of it.
"use strict";
(() => {
  const PAUSE = 400; // ms after the first frame in which an answer cannot be meant for this item: nobody has read it
  const SHORT_PAUSE = 150; // ms in which a second press of a key cannot be meant for the question that just came
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const form = one("#answer");
  document.documentElement.classList.add("scripted");

  // A live region is read out only when it changes, and a new page is no change.
  const say = (place, text) => {
    place.textContent = "";
    setTimeout(() => { place.textContent = text; }, 100);
  };
  if (one("#said")) say(one("#said"), one("#said").textContent);

  // A hidden tab draws no frame, so a page that was never seen takes no answer.
  let ready = Infinity;
  requestAnimationFrame(() => { ready = performance.now() + PAUSE; });

  // Time counts while the page is in view: a labeler who looks something up elsewhere is not slow.
  let seen = 0;
  let since = document.hidden ? null : performance.now();
  const look = () => {
    if (since !== null) seen += performance.now() - since;
    since = document.hidden ? null : performance.now();
  };
  document.addEventListener("visibilitychange", look);

  let sent = false; // two quick presses are one answer
  document.addEventListener("submit", (event) => {
    if (sent || performance.now() < ready) {
      event.preventDefault();
      return;
    }
    sent = true;
    look();
    if (form) form.elements.seconds.value = (seen / 1000).toFixed(2);
  });
  if (location.pathname === "/undo") history.replaceState(null, "", "/"); // a reload must not take one more back
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  // What was given to an open item is kept on the server with each answer, so that no crash loses it. One request at a
  // time: an older one that comes later would undo a newer one.
  const WRITING_PAUSE = 500; // ms without a letter after which a text is sent
  let changed = false;
  let keeping = false;
  const keep = async () => {
    changed = true;
    if (keeping) return;
    keeping = true;
    while (changed && !sent) {
      changed = false;
      const body = new URLSearchParams(new FormData(form));
      try { await fetch("/draft", { method: "POST", body }); } catch { break; } // the next answer tries again
    }
    keeping = false;
  };
  let writing = 0;
  if (form) {
    document.addEventListener("change", (event) => { if (event.target.form === form) keep(); });
    document.addEventListener("input", (event) => {
      if (event.target.form !== form || event.target.tagName !== "TEXTAREA") return;
      clearTimeout(writing);
      writing = setTimeout(keep, WRITING_PAUSE);
    });
  }

  // What was begun to be written survives undo, a reload and a lost connection.
  const texts = form ? [...form.elements].filter((each) => each.tagName === "TEXTAREA") : [];
  for (const text of texts) {
    const draft = `${text.name} ${form.elements.rating.value}`;
    const details = text.closest("details");
    const kept = sessionStorage.getItem(draft);
    if (kept !== null) text.value = kept;
    if (text.value !== (text.name.startsWith("rewrites") ? text.defaultValue : "")) details.open = true;
    text.addEventListener("input", () => sessionStorage.setItem(draft, text.value));
    details.querySelector("summary").addEventListener("click", (event) => {
      event.preventDefault(); // the browser's own way opens it a little later, when the first letters are typed
      details.open = !details.open;
      if (details.open) text.focus();
    });
  }
  // What is selected in an answer becomes a line of what is wrong in it.
  const raw = one("#raw"); // passages are of the text as it was written
  for (const box of all("details:has([data-mark])")) {
    box.addEventListener("toggle", () => { if (raw && box.open) raw.checked = true; });
  }
  for (const button of all("[data-mark]")) {
    button.addEventListener("mousedown", (event) => event.preventDefault()); // it would end the selection
    button.addEventListener("click", () => {
      const selection = getSelection();
      const answer = button.closest("article");
      const words = selection.toString().split(/\s+/).filter(Boolean).join(" ");
      if (!words || !answer.querySelector(".text").contains(selection.anchorNode)) return;
      const list = answer.querySelector("[name^=spans]");
      list.value += `${list.value && !list.value.endsWith("\n") ? "\n" : ""}${button.dataset.mark} ${words}\n`;
      list.dispatchEvent(new Event("input", { bubbles: true }));
    });
  }
  if (location.pathname.startsWith("/l/")) sessionStorage.clear(); // another labeler's, or of another database

  // Ranking: answers are picked from best to worst. The lists hold the ranks, and may be set by hand as well.
  const lists = all("#answers select");
  let placed = []; // [list, whether it shares the rank before it]
  const tell = () => {
    const left = lists.filter((list) => !list.value).length;
    one("#todo").textContent = left ? `${left} left, best first` : "All have a rank";
    for (const list of lists) {
      const answer = list.closest("article");
      answer.classList.toggle("ranked", list.value !== "");
      answer.querySelector("[data-pick] span").textContent = list.value ? "Take out" : "Next best";
    }
  };
  const place = (now) => {
    placed = now.map(([list, shares], index) => [list, shares && index > 0]);
    let rank = 0;
    for (const list of lists) list.value = "";
    for (const [list, shares] of placed) list.value = rank += !shares;
    one("#tie").checked = false;
    tell();
    keep();
  };
  const pick = (list) => {
    const known = placed.findIndex(([other]) => other === list);
    if (known < 0) return place([...placed, [list, one("#tie").checked]]);
    const next = placed[known + 1]; // the first of equals goes: the next one begins the rank
    if (next && !placed[known][1]) next[1] = false;
    return place(placed.filter((_, index) => index !== known));
  };
  if (lists.length) {
    for (const button of all("[data-pick]")) {
      button.addEventListener("click", () => pick(lists[button.dataset.pick]));
    }
    // The browser's own complaint would put the focus on a list, and the next number pressed would go there.
    document.addEventListener("invalid", (event) => {
      event.preventDefault();
      say(one("#todo"), `Not saved: ${lists.filter((list) => !list.value).length} without a rank`);
    }, true);
    one("#back").addEventListener("click", () => place(placed.slice(0, -1)));
    const read = () => {
      placed = lists.filter((each) => each.value).sort((a, b) => a.value - b.value)
        .map((each, index, sorted) => [each, index > 0 && sorted[index - 1].value === each.value]);
      tell();
    };
    for (const list of lists) list.addEventListener("change", read);
    read();
  }

  // One question at a time: an answer goes on to the next, and the overall choice sends them all.
  const questions = all("fieldset.question");
  const answered = (question) => question.querySelector("input:checked") !== null;
  const ask = () => {
    const open = questions.findIndex((question) => !answered(question));
    const now = open < 0 ? questions.length : open;
    questions.forEach((question, place) => { question.hidden = place !== now; });
    for (const part of [one("#choices"), one("#more [value=b]")]) if (part) part.hidden = open >= 0;
    one("#step-back").hidden = now === 0;
    one("[form=undo]").hidden = now !== 0; // it comes back with the first question
    return now;
  };
  let arrow = false; // the arrow keys of a group of radio buttons look around in it
  document.addEventListener("keydown", (event) => {
    arrow = event.key.startsWith("Arrow");
    setTimeout(() => { arrow = false; });
  }, true);
  const goOn = () => {
    const now = ask();
    ready = Math.max(ready, performance.now() + SHORT_PAUSE);
    say(one("#asked"), now < questions.length ? questions[now].querySelector("legend").textContent
      : one("#choices .overall").textContent);
  };
  if (questions.length) {
    for (const input of all(".question input")) {
      input.addEventListener("click", () => { if (!arrow) goOn(); });
    }
    one("#step-back").addEventListener("click", () => {
      const last = questions.filter(answered).at(-1);
      last.querySelector("input:checked").checked = false;
      keep();
      goOn();
    });
    ask();
  }

  // The last message of a conversation is the one that is answered.
  const prompt = one("#prompt");
  if (prompt && prompt.querySelectorAll("h2").length > 1) prompt.scrollTop = prompt.scrollHeight;

  const hotkeys = one("#hotkeys"); // speech input types letters at random: such users turn keys off
  if (hotkeys) {
    hotkeys.checked = localStorage.getItem("keys") !== "off";
    hotkeys.addEventListener("change", () => localStorage.setItem("keys", hotkeys.checked ? "on" : "off"));
  }

  // Where the layout has no such character on the key, as digits on a French one, its place decides.
  const nameOf = (event) => {
    const told = event.key.length > 1 || event.shiftKey || /[a-z0-9?=]/i.test(event.key);
    return (told ? event.key : event.code.replace(/^(Key|Digit|Numpad)/, "")).toLowerCase();
  };
  let lastWritten = null; // the head of the text that a key opened last
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "Escape") {
      document.activeElement.blur();
      if (one("#help")) one("#help").open = false;
      return;
    }
    if (event.key === "Enter" && event.target.closest(".question")) {
      event.preventDefault();
      if (answered(event.target.closest(".question"))) goOn();
      return;
    }
    if (event.key === "Enter" && event.target.closest("#answer input")) {
      event.preventDefault(); // the browser would send the form
      return;
    }
    if (event.target.closest("textarea, select") || (hotkeys && !hotkeys.checked)) return;
    if (event.key === "Enter" && event.target.closest("a, button, summary, label, input")) return; // it has its own
    // A key that several have, as one of each answer, goes round them.
    const same = all("[data-key]").filter((each) => each.dataset.key === nameOf(event) && !each.closest("[hidden]"));
    const control = same[(same.indexOf(lastWritten) + 1) % same.length];
    if (!control) return;
    event.preventDefault();
    if (event.repeat || performance.now() < ready) return;
    const open = control.tagName === "SUMMARY" && control.closest("details[open]")?.querySelector("textarea");
    if (control.tagName === "SUMMARY") lastWritten = control;
    if (open) open.focus();
    else control.click();
  });
})();
