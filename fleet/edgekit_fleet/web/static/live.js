// Live updates: fetch the page every two seconds and replace <main> where it differs.
// Without this file every page can still be read and every button works.
"use strict";

const main = document.getElementById("main");
const live = document.getElementById("live");
const EVERY_MS = 2000;

// A person who types, selects or has a menu open is not interrupted.
function busy() {
  const active = document.activeElement;
  const typing = active && main.contains(active) && ["INPUT", "TEXTAREA", "SELECT"].includes(active.tagName);
  const selecting = String(document.getSelection() || "") !== "";
  return typing || selecting;
}

function say(text, stale) {
  live.classList.toggle("stale", stale);
  if (live.textContent !== text) live.textContent = text;
}

function replace(fresh) {
  const open = [...main.querySelectorAll("details")].map((item) => item.open);
  const focused = document.activeElement && main.contains(document.activeElement) ? focusKey(document.activeElement) : null;
  const scrolled = [...main.querySelectorAll(".scroll")].map((item) => item.scrollLeft);
  main.replaceChildren(...fresh.childNodes);
  main.querySelectorAll("details").forEach((item, i) => { if (i < open.length) item.open = open[i]; });
  main.querySelectorAll(".scroll").forEach((item, i) => { item.scrollLeft = scrolled[i] || 0; });
  if (focused) {
    const again = [...main.querySelectorAll("a, button, summary")].find((item) => focusKey(item) === focused);
    if (again) again.focus({ preventScroll: true });
  }
}

function focusKey(item) {
  return item.id || item.getAttribute("href") || item.textContent;
}

async function refresh() {
  if (document.hidden || busy()) return;
  try {
    const answer = await fetch(location.href, { credentials: "same-origin", redirect: "error" });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("main");
    if (fresh && fresh.innerHTML !== main.innerHTML && !busy()) replace(document.importNode(fresh, true));
    say("live", false);
  } catch (error) {
    say(error.message === "401" ? "signed out" : "connection lost", true);
  }
}

if (main.hasAttribute("data-live")) {
  say("live", false);
  setInterval(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", refresh);
}

// Ask once before what cannot be undone.
document.addEventListener("submit", (event) => {
  const button = event.submitter;
  if (button && button.classList.contains("danger") && !window.confirm(`${button.textContent}?`)) event.preventDefault();
});
