// Small comforts: copying links, remembering a protocol, and saying when the page is not live.
(() => {
  "use strict";

  const chosen = (form) => form.querySelector("input[name=protocol]:checked")?.value ?? "http";

  // Links follow the protocol that is chosen beside them.
  const follow = (form) => {
    const link = form.querySelector("a[data-http]");
    if (link) link.href = link.dataset[chosen(form)] || link.href;
  };

  const show = () => {
    for (const button of document.querySelectorAll("button.copy[hidden]")) button.hidden = false;
    for (const form of document.querySelectorAll("form[data-remember]:not([data-known])")) {
      form.dataset.known = "yes";
      const kept = localStorage.getItem(`protocol ${form.dataset.remember}`);
      const radio = form.querySelector(`input[name=protocol][value="${kept === "https" ? "https" : "http"}"]`);
      if (radio && kept) radio.checked = true;
    }
  };

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };

  document.addEventListener("change", (event) => {
    if (event.target.name !== "protocol") return;
    const form = event.target.form;
    if (form.dataset.remember) localStorage.setItem(`protocol ${form.dataset.remember}`, event.target.value);
    follow(form);
    // A shared port is shared with its new protocol at once.
    const level = form.querySelector(".levels button[aria-pressed=true]");
    if (level && level.value !== "owner") level.click();
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button.copy");
    if (!button) return;
    const link = button.form.querySelector("a[data-http]");
    const done = link && (await copy(link.href));
    const notice = document.getElementById("notice");
    button.textContent = done ? "Copied" : "Not copied";
    if (notice && done) notice.innerHTML = '<p class="sr">The link is copied.</p>';
    setTimeout(() => { button.textContent = "Copy link"; }, 1500);
  });

  const lost = (is) => {
    const banner = document.getElementById("lost");
    if (banner) banner.hidden = !is;
  };

  // The stream of a live page. The extension opens it again when it ends or fails, and closes it
  // while the page is in the background; what it does not notice is noticed here: a stream that
  // never came about, and one that fell silent, as after a sleep or a change of networks.
  const live = document.querySelector("[hx-sse\\:connect]");
  const SILENCE = 40_000;
  let stream = null;
  let heard = 0;
  document.addEventListener("htmx:sse:error", (event) => {
    lost(true);
    // The session or the workspace has ended: the page itself says so.
    if ([401, 403, 404].includes(event.detail?.status)) location.reload();
  });
  document.addEventListener("htmx:response:error", (event) => {
    if (event.target === live && [401, 403, 404].includes(event.detail?.ctx?.response?.status)) location.reload();
  });
  document.addEventListener("htmx:sse:after:connection", (event) => {
    stream = event.detail.connection;
    heard = Date.now();
    lost(false);
  });
  document.addEventListener("htmx:sse:after:message", () => { heard = Date.now(); lost(false); show(); });
  document.addEventListener("htmx:sse:close", () => { stream = null; });
  document.addEventListener("htmx:after:swap", show);
  const watch = () => {
    if (document.hidden || !live) return;
    if (!stream) {
      lost(true);
      htmx.trigger(live, "again");
    } else if (stream.reader && Date.now() - heard > SILENCE) {
      stream.reader.cancel();
    }
  };
  if (live) {
    setInterval(watch, 3_000);
    document.addEventListener("visibilitychange", () => { heard = Date.now(); });
    // A page that comes back out of the browser's memory shows what once was.
    window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }
  show();
})();
