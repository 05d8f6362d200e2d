"use strict";

const form = document.getElementById("key-form");
const problem = document.getElementById("problem");
let key = null; // never stored: it is gone with the tab

function show(spec) {
  form.hidden = true;
  SwaggerUIBundle({
    dom_id: "#swagger-ui",
    spec,
    deepLinking: true,
    validatorUrl: null,
    requestInterceptor: (request) => {
      if (key !== null && new URL(request.url, location.href).origin === location.origin) {
        request.headers.Authorization ??= `Bearer ${key}`;
      }
      return request;
    },
  });
}

async function load() {
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  const reply = await fetch("openapi.json", { headers });
  if (reply.status === 401) {
    problem.textContent = key === null ? "" : "The server does not know this key.";
    form.hidden = false;
    document.getElementById("key").focus();
  } else if (reply.ok) {
    show(await reply.json());
  } else {
    problem.textContent = `The server answered ${reply.status}.`;
    form.hidden = false;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  key = document.getElementById("key").value.trim();
  load();
});

load();
