// Dashboard behaviour beside htmx: dialogs, ticked files, copying, uploads, focus.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const say = (sentence, isAlert = false) => {
    const message = document.createElement("p");
    message.className = isAlert ? "message is-alert" : "message";
    message.textContent = sentence;
    byId("status").replaceChildren(message);
  };

  // Focus returns to the element that opened a dialog or detail: found by its id, as a swap may have replaced it.
  let opener = "";
  let goesTo = "";
  const focusOn = (id) => {
    const element = id && byId(id);
    if (element) element.focus();
    return Boolean(element);
  };

  const prepare = () => {
    for (const dialog of document.querySelectorAll("dialog[data-modal][open]")) {
      if (dialog.matches(":modal")) continue;
      dialog.removeAttribute("open"); // open but not modal, for browsers without scripts
      dialog.addEventListener("close", () => {
        dialog.remove();
        focusOn(opener);
      });
      dialog.showModal();
    }
    for (const input of document.querySelectorAll("[data-address]")) {
      input.value = new URL(input.value, location.href).href;
    }
    const send = byId("upload-send");
    if (send) send.hidden = true; // files are sent as soon as they are chosen
    showTicked();
  };

  const ticks = () => [...document.querySelectorAll("[data-tick]")];
  const showTicked = () => {
    const all = document.querySelector("[data-ticks-all]");
    if (!all) return;
    const ticked = ticks().filter((tick) => tick.checked).length;
    all.disabled = ticks().length === 0;
    all.checked = ticked > 0 && ticked === ticks().length;
    all.indeterminate = ticked > 0 && !all.checked;
    byId("ticked").textContent = ticked ? `${ticked} ticked` : "";
    for (const id of ["lock", "delete"]) byId(id).disabled = ticked === 0;
  };

  const markOpen = (link) => {
    for (const row of document.querySelectorAll(".files li")) row.classList.toggle("is-open", row.contains(link));
  };

  const copy = async (field) => {
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      field.select(); // without https there is no other clipboard
      document.execCommand("copy");
    }
    say("Copied.");
  };

  const refresh = (address) => htmx.ajax("GET", address, { target: "#page", select: "#page", swap: "outerHTML" });

  const sendFile = (form, file, done, total) =>
    new Promise((resolve, reject) => {
      const fields = new FormData();
      fields.append("token", form.elements.token.value); // before the file, so that it is checked first
      fields.append("file", file, file.name);
      const request = new XMLHttpRequest();
      const progress = byId("upload-progress");
      request.upload.addEventListener("progress", (event) => {
        if (event.lengthComputable) progress.value = (done + event.loaded / event.total) / total;
      });
      request.addEventListener("load", () => {
        let reply;
        try {
          reply = JSON.parse(request.responseText);
        } catch {
          reply = { error: "Unreadable", message: "The reply can't be read; try again." };
        }
        if (reply.error === null) resolve();
        else reject(new Error(reply.message));
      });
      request.addEventListener("error", () => reject(new Error("The service can't be reached; try again.")));
      request.open("POST", form.action);
      request.send(fields);
    });

  const sendAll = async (form, files) => {
    if (!files.length) return;
    const progress = byId("upload-progress");
    progress.hidden = false;
    progress.value = 0;
    say(files.length === 1 ? `Uploading ${files[0].name} …` : `Uploading ${files.length} files …`);
    const refused = [];
    for (const [number, file] of files.entries()) {
      try {
        await sendFile(form, file, number, files.length);
      } catch (error) {
        refused.push(`${file.name}: ${error.message}`);
      }
    }
    await refresh(form.dataset.uploads);
    const count = files.length - refused.length;
    if (refused.length) say(refused.join(" "), true);
    else say(count === 1 ? `Uploaded ${files[0].name}.` : `Uploaded ${count} files.`);
    focusOn("upload-file");
  };

  document.addEventListener("change", (event) => {
    const target = event.target;
    if (target.matches("[data-ticks-all]")) for (const tick of ticks()) tick.checked = target.checked;
    if (target.matches("[data-tick], [data-ticks-all]")) showTicked();
    if (target.id === "upload-file") void sendAll(target.form, [...target.files]);
  });

  document.addEventListener("click", (event) => {
    const closes = event.target.closest("[data-closes]");
    if (closes) {
      event.preventDefault();
      closes.closest("dialog").close();
    }
    const copies = event.target.closest("[data-copies]");
    if (copies) void copy(byId(copies.dataset.copies));
    const shows = event.target.closest("[data-shows-detail]");
    if (shows) {
      opener = shows.id;
      goesTo = "detail-title";
      markOpen(shows);
    }
    if (event.target.closest("[data-closes-detail]")) {
      goesTo = opener;
      markOpen(null);
    }
    const asks = event.target.closest("button[name=do]");
    if (asks) opener = asks.id;
  });

  for (const [name, isOver] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => {
      const form = byId("upload");
      if (!form || !event.dataTransfer || ![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault(); // on the whole page, as the browser would open the file otherwise
      form.classList.toggle("is-over", isOver);
      if (name === "drop") void sendAll(form, [...event.dataTransfer.files]);
    });
  }

  // A page requested earlier must not replace a page requested later.
  const overtaken = new WeakSet();
  let latest = null;
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.target.id !== "page") return;
    if (latest) overtaken.add(latest);
    latest = event.detail.xhr;
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (overtaken.has(event.detail.xhr)) event.detail.shouldSwap = false;
  });

  document.addEventListener("htmx:afterSettle", () => {
    prepare();
    if (document.querySelector("dialog:modal")) return;
    if (goesTo && focusOn(goesTo)) goesTo = "";
    else if (document.activeElement === document.body) focusOn(opener) || byId("main")?.focus({ preventScroll: true });
    const fault = document.querySelector("[aria-invalid=true]");
    if (fault) fault.focus();
  });
  document.addEventListener("htmx:sendError", () => say("The service can't be reached; try again.", true));

  prepare();
})();
