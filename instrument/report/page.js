"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const number = (value) => value === null ? "none" : typeof value === "string" ? value : Number(value.toPrecision(4)).toString();
  const show = (target, parts) => {
    target.replaceChildren(...parts.flatMap(([label, value], index) => {
      const bold = document.createElement("b");
      bold.textContent = value;
      return [`${index ? ", " : ""}${label} `, bold];
    }));
  };

  const plot = document.getElementById("plot");
  if (plot && data.records.length) {
    const area = plot.querySelector(".area"), cursor = document.getElementById("cursor"), readout = document.getElementById("readout");
    const steps = data.records.map((record) => record[0]);
    const said = new Map();
    for (const [step, title] of data.marks) said.set(step, [...(said.get(step) || []), title.replace(/^step \d+: /, "")]);
    const width = Math.max(1, data.last - data.first);
    let at = -1;
    const select = (index) => {
      at = Math.min(Math.max(index, 0), steps.length - 1);
      const [step, loss, norm, rate, outcome, rank] = data.records[at];
      const box = area.getBoundingClientRect(), outer = plot.getBoundingClientRect();
      const share = data.last === data.first ? 0.5 : (step - data.first) / width;
      cursor.hidden = false;
      cursor.style.left = `${box.left - outer.left + share * box.width}px`;
      const parts = [["step", String(step)]];
      if (rank !== null) parts.push(["rank", String(rank)]);
      parts.push(["loss", number(loss)], ["gradient norm", number(norm)]);
      if (rate !== null) parts.push(["learning rate", number(rate)]);
      parts.push(["", outcome]);
      for (const text of said.get(step) || []) if (text !== outcome) parts.push(["", text]);
      show(readout, parts);
    };
    const nearest = (step) => {
      let best = 0;
      for (let i = 1; i < steps.length; i += 1) if (Math.abs(steps[i] - step) < Math.abs(steps[best] - step)) best = i;
      return best;
    };
    const point = (event) => {
      const box = area.getBoundingClientRect();
      select(nearest(data.first + ((event.clientX - box.left) / box.width) * width));
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("keydown", (event) => {
      const move = {ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20}[event.key];
      if (move === undefined) return;
      event.preventDefault();
      select(at + move);
    });
  }

  for (const figure of document.querySelectorAll(".map")) {
    const map = data.maps[Number(figure.dataset.map)], image = figure.querySelector("img");
    const readout = document.querySelector(`[data-readout="${figure.dataset.map}"]`);
    const point = (event) => {
      const box = image.getBoundingClientRect();
      const column = Math.min(map.steps.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * map.steps.length)));
      const row = Math.min(map.rows.length - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * map.rows.length)));
      const value = map.cells[row][column];
      show(readout, [["", map.rows[row]], ["step", String(map.steps[column])], ["gradient norm", value === null ? "no gradient" : number(value)]]);
    };
    image.addEventListener("pointermove", point);
    image.addEventListener("pointerdown", point);
  }
})();
