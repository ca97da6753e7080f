// Hotkeys, the time the page was looked at, and ranking by picking. The page works without any of it.
"use strict";
(() => {
  const PAUSE = 400; // ms after the first frame in which an answer cannot be meant for this item: nobody has read it
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

  // A comment that was begun survives undo, a reload and a lost connection.
  const remark = form && form.elements.comment;
  if (remark) {
    const draft = `comment ${form.elements.rating.value}`;
    remark.value = sessionStorage.getItem(draft) || remark.value;
    one("#remark").open = remark.value !== "";
    remark.addEventListener("input", () => sessionStorage.setItem(draft, remark.value));
    one("#remark summary").addEventListener("click", (event) => {
      event.preventDefault(); // the browser's own way opens it a little later, when the first letters are typed
      one("#remark").open = !one("#remark").open;
      if (one("#remark").open) remark.focus();
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
    for (const list of lists) {
      list.addEventListener("change", () => {
        placed = lists.filter((each) => each.value).sort((a, b) => a.value - b.value)
          .map((each, index, sorted) => [each, index > 0 && sorted[index - 1].value === each.value]);
        tell();
      });
    }
    tell();
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
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "Escape") {
      document.activeElement.blur();
      if (one("#help")) one("#help").open = false;
      return;
    }
    if (event.target.closest("textarea, select") || (hotkeys && !hotkeys.checked)) return;
    if (event.key === "Enter" && event.target.closest("a, button, summary, label, input")) return; // it has its own
    const control = all("[data-key]").find((each) => each.dataset.key === nameOf(event));
    if (!control) return;
    event.preventDefault();
    if (event.repeat || performance.now() < ready) return;
    if (control.closest("#remark[open]")) remark.focus();
    else control.click();
  });
})();
