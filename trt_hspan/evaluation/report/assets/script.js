"use strict";
for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input");
  const images = [...slider.querySelectorAll("img")];
  const sides = ["left", "right"].map((side) => ({
    side,
    select: slider.parentElement.querySelector(`select.${side}`),
    tag: slider.querySelector(`.tag.${side}`),
  }));
  const show = () => {
    for (const { side, select, tag } of sides) {
      for (const image of images) image.classList.toggle(`on-${side}`, image.dataset.key === select.value);
      tag.textContent = select.selectedOptions[0].textContent;
    }
    for (const image of images) {
      const visible = image.classList.contains("on-left") || image.classList.contains("on-right");
      image.setAttribute("aria-hidden", String(!visible));
    }
    move();
  };
  const move = () => {
    slider.style.setProperty("--at", `${input.value}%`);
    const [left, right] = sides.map(({ select }) => select.selectedOptions[0].textContent);
    input.setAttribute("aria-valuetext", `${Math.round(input.value)} % ${left}, the rest ${right}`);
  };
  input.addEventListener("input", move);
  for (const { select } of sides) select.addEventListener("change", show);
  show();
}
