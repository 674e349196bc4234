"use strict";
// Sorts and filters the cards of the gallery. Without scripts they stand in the report's order.
const form = document.getElementById("controls");
if (form) {
  const list = document.getElementById("cards");
  const cards = Array.from(list.children);
  const shows = {
    "": () => true,
    suspicious: (data) => data.group === "suspicious",
    flagged: (data) => "flagged" in data,
    wrong: (data) => "wrong" in data,
    disagree: (data) => "disagree" in data,
    quality: (data) => "quality" in data,
    failed: (data) => data.status === "failed",
    unreadable: (data) => "unreadable" in data,
  };
  const number = (card, name) => Number(card.dataset[name] ?? -1); // failed images come last
  const orders = {
    order: (a, b) => number(a, "order") - number(b, "order"),
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  };
  const update = () => {
    const { sort, show, prediction, name } = form.elements;
    const text = name.value.trim().toLowerCase();
    let shown = 0;
    for (const card of cards) {
      const data = card.dataset;
      const fits = shows[show.value](data)
        && (!prediction.value || data.prediction === prediction.value)
        && data.name.toLowerCase().includes(text);
      card.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    const key = sort.value;
    const order = orders[key] ?? ((a, b) => number(b, key) - number(a, key) || orders.order(a, b));
    list.append(...cards.sort(order));
    document.getElementById("shown").textContent = `${shown} of ${cards.length} shown`;
    document.getElementById("nothing").hidden = shown > 0;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  for (const link of document.querySelectorAll("[data-show]")) {
    link.addEventListener("click", () => {
      form.reset();
      form.elements.show.value = link.dataset.show;
      update();
    });
  }
  const reveal = () => { // a link to a card that is filtered out
    const card = document.getElementById(location.hash.slice(1));
    if (card?.hidden) {
      form.reset();
      update();
      card.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", reveal);
  form.hidden = false;
  update();
}
