/** Which page is shown: by the address's part after #, so that each has an address of its own. */

import { call, get, onLogInNeeded } from "./api.mjs";
import { h, notice } from "./dom.mjs";
import { hostsPage } from "./hosts.mjs";
import { jobPage } from "./job.mjs";
import { jobsPage } from "./jobs.mjs";
import { schedulesPage } from "./schedules.mjs";
import { submitPage } from "./submit.mjs";

const main = document.getElementById("main");
const logOut = document.getElementById("log-out");
let leave = () => {};

function show() {
  leave();
  leave = () => {};
  notice();
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page, id] = path.split("/");
  for (const link of document.querySelectorAll("nav [data-page]")) {
    if (link.dataset.page === (page || "jobs")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (page === "jobs" && id) leave = jobPage(main, decodeURIComponent(id));
  else if (page === "schedules") leave = schedulesPage(main);
  else if (page === "hosts") leave = hostsPage(main);
  else if (page === "new") submitPage(main);
  else leave = jobsPage(main, new URLSearchParams(query));
}

function logIn() {
  leave();
  leave = () => {};
  logOut.hidden = true;
  const token = h("input", { type: "password", name: "token", autocomplete: "current-password", required: true });
  const enter = async (event) => {
    event.preventDefault();
    try {
      await call("POST", "session", { token: token.value });
    } catch (error) {
      return notice(error.code === 401 ? "That is not the token: it is in CRONIUM_WEB__TOKEN of the server." : error.message);
    }
    start();
  };
  main.replaceChildren(h("form", { class: "log-in", onsubmit: enter }, h("h1", {}, "Log in"), h("label", {}, h("span", {}, "Token"), token), h("button", { class: "primary" }, "Log in")));
  token.focus();
}

async function start() {
  let session;
  try {
    session = await get("session");
  } catch (error) {
    if (error.code !== 401) notice(error.message);
    return logIn();
  }
  logOut.hidden = !session.token;
  const flower = document.getElementById("flower");
  flower.hidden = !session.flower;
  if (session.flower) flower.href = session.flower;
  show();
}

logOut.addEventListener("click", async () => {
  await call("DELETE", "session");
  logIn();
});
onLogInNeeded(logIn);
addEventListener("hashchange", show);
start();
