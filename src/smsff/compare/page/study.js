"use strict";
const study = JSON.parse(document.getElementById("study").textContent);
const at = id => document.getElementById(id);
const kept = "smsff study " + study.id;

function random(below) {
  return crypto.getRandomValues(new Uint32Array(1))[0] % below;
}

function shuffled(items) {
  const order = [...items];
  for (let i = order.length - 1; i > 0; i--) {
    const j = random(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

// Every comparison is shown in two orders, one the reverse of the other.
function begin() {
  const some = shuffled(study.comparisons).slice(0, study.most);
  const trials = some.flatMap(([photo, codes]) => {
    const order = shuffled(codes);
    return [{ photo, shown: order }, { photo, shown: [...order].reverse() }];
  });
  const voter = Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, "0")).join("");
  return { study: study.id, voter, trials: shuffled(trials), votes: [] };
}

function restored() {
  try {
    return JSON.parse(localStorage.getItem(kept)) || begin();
  } catch {
    return begin();
  }
}

function keep() {
  try {
    localStorage.setItem(kept, JSON.stringify(state));
  } catch {
    // a browser that keeps nothing: the answers last as long as the page
  }
}

const state = restored();
const names = Object.keys(study.questions);
let since = performance.now();

function current() {
  const trial = state.trials[Math.floor(state.votes.length / names.length)];
  return trial && { ...trial, question: names[state.votes.length % names.length] };
}

function figure(uri, caption) {
  const one = document.createElement("figure"), image = new Image(), text = document.createElement("figcaption");
  image.src = uri;
  image.alt = text.textContent = caption;
  one.append(image, text);
  return one;
}

function show() {
  const trial = current();
  at("shown").hidden = !trial;
  at("end").hidden = Boolean(trial);
  at("progress").textContent = `${state.votes.length} of ${state.trials.length * names.length} answers`;
  at("question").textContent = trial ? study.questions[trial.question] : "All done";
  at("given").replaceChildren();
  at("choices").replaceChildren();
  if (!trial) {
    at("save").focus();
    return;
  }
  const photo = study.photos[trial.photo];
  at("given").append(figure(photo.content, "The photo"), ...study.style.map(uri => figure(uri, "The style")));
  trial.shown.forEach((code, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(figure(photo.pictures[code], `Picture ${i + 1}`));
    button.addEventListener("click", () => vote(i));
    at("choices").append(button);
  });
  since = performance.now();
}

function vote(i) {
  const trial = current();
  if (!trial || i >= trial.shown.length) return;
  const seconds = Math.round(performance.now() - since) / 1000;
  state.votes.push({ ...trial, chosen: trial.shown[i], seconds });
  keep();
  show();
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (/^[1-9]$/.test(event.key)) vote(Number(event.key) - 1);
  if (event.key === "Backspace" && state.votes.length) {
    event.preventDefault();
    state.votes.pop();
    keep();
    show();
  }
});

at("save").addEventListener("click", () => {
  const { trials, ...answers } = state;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(answers, null, 1)], { type: "application/json" }));
  link.download = `votes-${state.voter}.json`;
  link.click();
});

keep();
show();
