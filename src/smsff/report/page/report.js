"use strict";
for (const stage of document.querySelectorAll(".stage")) {
  const range = stage.querySelector("input");
  const show = () => stage.style.setProperty("--split", range.value + "%");
  range.addEventListener("input", show);
  show(); // a browser may keep the value of a page that was open before
}

const box = document.getElementById("lightbox");
const view = box.querySelector(".view");
const large = view.querySelector("img");
const title = box.querySelector(".bar p");
const full = box.querySelector("[data-do=size]");
const pictures = Array.from(document.querySelectorAll("main img"));
let current = 0;

function show(index) {
  current = (index + pictures.length) % pictures.length;
  large.src = pictures[current].src;
  large.alt = title.textContent = pictures[current].alt;
}

function resize(on) {
  view.classList.toggle("full", on);
  full.setAttribute("aria-pressed", String(on));
}

function open(picture) {
  resize(false);
  show(pictures.indexOf(picture));
  box.showModal();
}

const actions = {
  previous: () => show(current - 1),
  next: () => show(current + 1),
  size: () => resize(!view.classList.contains("full")),
  close: () => box.close(),
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) {
    if (event.target === box) box.close(); // the backdrop
    return;
  }
  if (button.dataset.do) actions[button.dataset.do]();
  else if (button.classList.contains("zoom")) open(button.querySelector("img"));
  else if (button.classList.contains("enlarge")) open(button.closest("figure").querySelector(".after"));
});

box.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" && !view.classList.contains("full")) actions.previous();
  else if (event.key === "ArrowRight" && !view.classList.contains("full")) actions.next();
  else if (event.key === "f") actions.size();
  else return;
  event.preventDefault();
});
