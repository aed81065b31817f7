/* What the page does in the browser itself: follow growing replies, Esc, copy, light and dark, dropped files, address. */
(() => {
  if (window.backendArena) return;
  const near = 48; // px from the end that still count as "at the end"
  const followed = new WeakSet();

  function follow(box) {
    if (followed.has(box)) return;
    followed.add(box);
    let pinned = true;
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `Conversation of panel ${box.id.split("-")[1]}`);
    /* A scroll, our own too, is told one frame late, and the reply may have grown meanwhile: to be far from the end says
       nothing. Who is further up than we left the box, though it has not shrunk, has scrolled. */
    let left = 0, height = 0;
    const movedUp = (by) => box.scrollTop < left - by && box.scrollHeight >= height;
    box.addEventListener("scroll", () => {
      if (box.scrollHeight - box.scrollTop - box.clientHeight < near) pinned = true;
      else if (movedUp(0)) pinned = false;
    }, { passive: true });
    const down = () => {
      if (movedUp(near)) pinned = false;
      if (pinned) box.scrollTop = box.scrollHeight;
      left = box.scrollTop;
      height = box.scrollHeight;
    };
    new MutationObserver(down).observe(box, { childList: true, subtree: true, characterData: true });
    // What comes into sight is laid out only then, and may be higher than what stood for it.
    const sizes = new ResizeObserver(down);
    for (const part of box.children) sizes.observe(part);
    box.addEventListener("toggle", () => { pinned = false; }, true);
    down();
  }

  function announceRegion() {
    const region = document.getElementById("announce");
    if (region && !region.hasAttribute("aria-live")) {
      region.setAttribute("aria-live", "polite");
      region.setAttribute("role", "status");
    }
  }

  function look() {
    document.querySelectorAll(".panel-scroll").forEach(follow);
    drawAll();
    announceRegion();
  }

  async function copy(button, text) {
    button.firstChild.textContent = (await toClipboard(text)) ? "Copied" : "Not copied";
    setTimeout(() => { button.firstChild.textContent = "Copy"; }, 1500);
  }

  async function toClipboard(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* over plain http from another machine there is no such thing, but what is selected can be copied */ }
    const held = document.createElement("textarea"), focused = document.activeElement;
    held.value = text;
    held.setAttribute("readonly", "");
    held.style.cssText = "position: fixed; top: 0; opacity: 0";
    document.body.append(held);
    held.select();
    try {
      return document.execCommand("copy");
    } finally {
      held.remove();
      focused?.focus({ preventScroll: true });
    }
  }

  function setDark(dark) {
    document.body.classList.toggle("dark", dark);
    try { localStorage.setItem("backend-arena-theme", dark ? "dark" : "light"); } catch { /* private window */ }
  }

  /* On paper it is always light. */
  let darkOnScreen = false;
  addEventListener("beforeprint", () => {
    darkOnScreen = document.body.classList.contains("dark");
    document.body.classList.remove("dark");
  });
  addEventListener("afterprint", () => { document.body.classList.toggle("dark", darkOnScreen); });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (["send", "first-run"].includes(button.id)) press(button.id);
    if (button.id === "theme-switch") setDark(!document.body.classList.contains("dark"));
    else if (button.dataset.press) document.getElementById(button.dataset.press)?.click();
    else if (button.dataset.copy) copy(button, button.dataset.copy);
    else if (button.classList.contains("copy-code")) copy(button, button.closest(".md-code").querySelector("code").textContent);
    else if (button.classList.contains("copy-reply")) copy(button, button.closest(".reply").querySelector("template").content.textContent);
  });

  // Enter and Escape of somebody who is choosing characters (Japanese, Chinese, Korean …) belong to that choice.
  const composes = (event) => event.isComposing || event.keyCode === 229;

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || composes(event) || !event.target.closest?.("#prompt")) return;
    if (event.repeat || isUnderway()) ignore(event);
    else press();
  }, true);

  /* One press, one prompt: another click or a held key comes while it is on its way, and the second click of a double
     click would meet Stop all, which has taken Send's place. Clicks by the page itself are not meant. */
  document.addEventListener("click", (event) => {
    const button = event.isTrusted ? event.target.closest?.("#send, #stop-all") : null;
    if (!button) return;
    if (seconds() - clickedAt < DOUBLE_CLICK_S || (button.id === "send" && isUnderway())) ignore(event);
    else if (button.id === "send") clickedAt = seconds();
  }, true);

  function ignore(event) {
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || composes(event)) return;
    if (event.target.closest && event.target.closest("[role=listbox], .options-list, [aria-expanded=true]")) return;
    const stop = document.getElementById("stop-all");
    if (stop?.offsetParent && document.querySelector(".now .growing")) stop.click(); // not from another tab
  });

  /* A file may be dropped anywhere on the Compare tab. Elsewhere, too, the browser must not leave the page for it. */
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types?.includes("Files")) return;
      event.preventDefault();
      const composer = document.querySelector(".composer");
      const input = composer?.offsetParent ? composer.querySelector("input[type=file]") : null;
      composer?.classList.toggle("dropping", kind === "dragover" && !!input);
      if (!input) event.dataTransfer.dropEffect = "none";
      if (kind !== "drop" || !input || !event.dataTransfer.files.length) return;
      const files = new DataTransfer();
      files.items.add(event.dataTransfer.files[0]);
      input.files = files.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    });
  }

  /* --- what changes on the Compare tab ---
     The server is asked for changes; the next question waits until the answer is drawn. While replies grow that is
     some fifteen times a second, or as often as this computer can; otherwise every few seconds. */
  const TICK_MS = 60, IDLE_MS = 5000, LIVE_MS = 1000; // LIVE: something else runs, only the live strip changes
  let liveTimer = 0;
  const slots = {};
  let key = "", server = null, tell = () => {}, asking = false, askAgain = false, everything = true, failures = 0;

  function sync(old, fresh) {
    // Make one element's children equal to another's, leaving alone what is equal already (selection, open details).
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((node, index) => {
      const present = before[index];
      if (!present) old.appendChild(node);
      else if (present.nodeType === 3 && node.nodeType === 3) { if (present.data !== node.data) present.data = node.data; }
      else if (present.nodeName === node.nodeName && present.nodeType === 1 && node.nodeName !== "TEMPLATE") {
        for (const { name, value } of [...node.attributes]) if (present.getAttribute(name) !== value) present.setAttribute(name, value);
        for (const { name } of [...present.attributes]) {
          if (!node.hasAttribute(name) && !(name === "open" && node.nodeName === "DETAILS")) present.removeAttribute(name);
        }
        sync(present, node);
      } else present.replaceWith(node);
    });
    before.slice(after.length).forEach((node) => node.remove());
  }

  function draw(place) {
    const html = slots[place.dataset.slot];
    if (html === undefined || place.drawn === html) return;
    place.drawn = html;
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    sync(place, fresh.content);
  }

  function receive(fresh) {
    // Slots as they are now; what is sent under a name that ends with "+" goes behind what is there.
    for (const [name, html] of Object.entries(fresh)) {
      if (!name.endsWith("+")) { slots[name] = html; continue; }
      const slot = name.slice(0, -1), before = slots[slot] ?? "", place = document.querySelector(`[data-slot="${slot}"]`);
      slots[slot] = before + html;
      if (place && (place.drawn ?? "") === before) {
        place.insertAdjacentHTML("beforeend", html);
        place.drawn = slots[slot];
      }
    }
  }

  function drawAll() {
    document.querySelectorAll(".slot").forEach(draw);
  }

  async function ask() {
    if (!server || !key) return;
    if (asking) { askAgain = true; return; }
    asking = true;
    try {
      for (let running = true; running || askAgain;) {
        askAgain = false;
        const started = performance.now();
        const answer = await question();
        running = answer.running;
        if (answer.live && !running && !liveTimer) liveTimer = setTimeout(() => { liveTimer = 0; if (!document.hidden) ask(); }, LIVE_MS);
        if (answer.gone) comeBack();
        if (answer.settle) tell("submit");
        if (answer.models) tell("select");
        running ||= seconds() < expecting;
        if (answer.running) expecting = 0;
        if (running) await new Promise((done) => setTimeout(done, Math.max(20, TICK_MS - (performance.now() - started))));
      }
    } finally {
      asking = false;
    }
  }

  /* The server's clock, so that the moment of a key press can be told in its time: the answer that came quickest says
     it best, to half the time it took. */
  let clock = null, pressed = null, expecting = 0;
  const EXPECTING_S = 3;
  let clickedAt = -Infinity, sentAt = -Infinity, isAnswered = true; // of the prompt sent last
  const DOUBLE_CLICK_S = 0.5, ANSWERED_WITHIN_S = 5;
  const isUnderway = () => !isAnswered && seconds() - sentAt < ANSWERED_WITHIN_S;
  const seconds = () => performance.now() / 1000;

  function setClock(asked, now) {
    const took = seconds() - asked;
    if (now !== undefined && (!clock || took <= clock.took)) clock = { took, ahead: now - asked - took / 2 };
  }

  function press(button = "send") {
    pressed = seconds();
    const text = button === "send" ? box()?.value : null;
    if (text) keepDraft({ text, pressed: PAGE, prompts: prompts() });
    // The server begins long before the browser is through with the event: ask until it has, or does not want to.
    if (!text?.trim()) return;
    sentAt = pressed;
    isAnswered = false;
    expecting = pressed + EXPECTING_S;
    ask();
  }

  function sending(values) {
    /* What goes to the server with a prompt, in the place of the last value: when the key was pressed, and which
       conversation this tab shows. */
    const told = JSON.stringify({ pressed: clock && pressed && pressed + clock.ahead, conversation: shown() });
    const draft = pressed && readDraft();
    pressed = null;
    if (draft?.pressed !== PAGE || draft.handed) return [...values.slice(0, -1), told];
    keepDraft({ ...draft, handed: true });
    // A page that is still loading may have emptied the box in between.
    return [values[0] || draft.text, ...values.slice(1, -1), told];
  }

  /* After the server has answered to a prompt: what it has taken, it has emptied the box of. An Enter in the empty box
     of a page that is still loading says nothing of what was typed before. */
  function taken() {
    isAnswered = true;
    const draft = readDraft();
    if (!box()?.value && draft?.pressed === PAGE && draft.handed) keepDraft(null);
    ask();
  }

  const shown = () => new URLSearchParams(window.location.search).get("c") || "";

  /* The server no longer knows this page (the app was started again, or the tab slept for long): get a new one for what
     is shown here, typed text and all. */
  let cameBack = 0;
  function comeBack() {
    clock = null;
    if (Date.now() - cameBack < 3000) return;
    cameBack = Date.now();
    tell("retry");
  }

  /* A server that was started again may want to see this browser at its door first, or have it log in. One that still
     cannot be asked is another version of the app: then the whole page is loaded anew, with what was being typed. */
  const LOST = '<p class="notice error" role="alert">Backend Arena does not answer: it has ended, or the line to it is down. ' +
    "What you type stays here; when it is back, this page goes on by itself.</p>";
  const DRAFT = "backend-arena-draft";
  const LOST_AFTER = 3; // questions without an answer: some two seconds
  let reloaded = false;

  async function comeIn() {
    try {
      const door = await fetch("/", { cache: "no-store" });
      const moved = new URL(door.url).pathname !== window.location.pathname;
      if (reloaded || (!moved && failures < 4)) return;
      reloaded = true;
      window.location.reload();
    } catch { /* not there yet */ }
  }

  /* What stands in the box, and what was sent but perhaps never arrived, outlives the page: Gradio reloads it, too, when
     its server has come back as another one, often before we have noticed. */
  const PAGE = String(performance.timeOrigin), STAYS_MS = 4000;
  const box = () => document.querySelector("#prompt textarea");
  // How many prompts are seen; null: nothing is painted yet.
  const prompts = () => (document.querySelector("#live")?.dataset.loaded ? document.querySelectorAll(".msg.user").length : null);

  function readDraft() {
    try { return JSON.parse(sessionStorage.getItem(DRAFT)); } catch { return null; }
  }

  function keepDraft(draft) {
    try { if (draft) sessionStorage.setItem(DRAFT, JSON.stringify(draft)); else sessionStorage.removeItem(DRAFT); } catch { /* then it is lost */ }
  }

  document.addEventListener("input", (event) => {
    if (!event.target.closest?.("#prompt")) return;
    const text = event.target.value;
    if (text !== readDraft()?.text) keepDraft(text ? { text } : null);
  }, true);

  window.addEventListener("pagehide", () => {
    const text = box()?.value, draft = readDraft();
    if (text && text !== draft?.text) keepDraft({ text });
    else if (!text && restored && !draft?.pressed) keepDraft(null);
  });

  /* The page fills its own fields while it loads, after this too: the draft is put back until it has stayed for a
     while. */
  let restoring = 0, restored = false, stays = 0;
  function takeDraft() {
    if (restored) return;
    clearTimeout(restoring);
    stays ||= Date.now() + STAYS_MS;
    const draft = readDraft(), place = box();
    const before = draft?.pressed && draft.pressed !== PAGE; // sent from the page before this one
    const underway = before ? prompts() === null : draft?.handed;
    if (underway) stays = Date.now() + STAYS_MS; // a page that loads waits for the engines' probes
    const fill = (text) => { place.value = text; place.dispatchEvent(new Event("input", { bubbles: true })); };
    if (before && draft.prompts !== null && prompts() > draft.prompts) {
      if (place?.value === draft.text) fill(""); // put back just before it was seen that the server had it
      keepDraft(null);
    } else if (draft && place && !place.value && !underway) {
      fill(draft.text);
      stays = Date.now() + STAYS_MS;
    }
    if (Date.now() > stays) restored = true;
    else restoring = setTimeout(takeDraft, 250);
  }

  async function question() {
    const asked = seconds();
    try {
      const answer = await server.changes({ key, everything });
      setClock(asked, answer.now);
      everything = false;
      failures = 0;
      receive(answer.slots);
      if ("conversation" in answer.slots) showConversation(answer.slots.conversation);
      drawAll();
      takeDraft();
      return answer;
    } catch (error) {
      everything = true; // the notice of the loss goes with it
      failures += 1;
      if (failures === LOST_AFTER) { slots.notices = LOST; drawAll(); }
      await comeIn();
      await new Promise((done) => setTimeout(done, Math.min(5000, 300 * failures)));
      return { running: failures < 20 };
    }
  }

  function showConversation(id) {
    const url = new URL(window.location.href);
    if (id) url.searchParams.set("c", id); else url.searchParams.delete("c");
    if (url.href !== window.location.href) window.history.replaceState(null, "", url);
  }

  function attach(props, functions, trigger, watch) {
    server = functions;
    tell = trigger;
    const take = () => { if (props.value && props.value !== key) { key = props.value; everything = true; document.getElementById("live").dataset.key = key; ask(); } };
    watch("value", take);
    take();
  }

  /* --- a tab that is painted like the Compare tab, only calmly: once a second while something runs ---
     The server keeps nothing for it: it is told what the tab looks at, and the mark of each slot that it has. Buttons
     in its slots say what they do in data-act. */
  const CALM_MS = 1000;

  function attend(tab, props, functions, trigger, watch) {
    let marks = {}, underway = false, again = false, timer = null;
    const place = () => document.getElementById(tab);
    async function round() {
      clearTimeout(timer);
      if (underway) { again = true; return; }
      underway = true;
      again = false;
      let running = false;
      try {
        if (!document.hidden && place()?.offsetParent) {
          const answer = await functions.changes({ value: props.value, marks });
          running = answer.running;
          Object.assign(slots, answer.slots);
          Object.assign(marks, answer.marks);
          drawAll();
        }
      } catch { marks = {}; }
      underway = false;
      timer = setTimeout(round, again ? 0 : running ? CALM_MS : IDLE_MS);
    }
    watch("value", round);
    document.addEventListener("visibilitychange", round);
    const onScreen = place();
    if (onScreen) {
      new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting)) round(); }).observe(onScreen);
      onScreen.addEventListener("click", (event) => {
        const button = event.target.closest("[data-act]");
        if (button) trigger("click", { act: button.dataset.act, value: button.dataset.value });
      });
    }
    round();
  }

  window.backendArena = { ask, attach, attend, sending, shown, taken };
  setInterval(() => { if (!document.hidden) ask(); }, IDLE_MS);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });

  function start() {
    let theme = null;
    try { theme = localStorage.getItem("backend-arena-theme"); } catch { /* private window */ }
    if (theme && !new URLSearchParams(location.search).has("__theme")) setDark(theme === "dark");
    look();
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
  }
  if (document.body) start(); else document.addEventListener("DOMContentLoaded", start);
})();
