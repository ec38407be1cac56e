"use strict";

for (const element of document.querySelectorAll(".scripted")) element.hidden = false;

for (const box of document.querySelectorAll("[data-variant]")) {
  box.addEventListener("change", () => {
    for (const element of document.querySelectorAll(`.variant-${box.dataset.variant}`))
      element.classList.toggle("off", !box.checked);
  });
}

for (const choices of document.querySelectorAll(".choices")) {
  const select = choices.querySelector("select");
  select.addEventListener("change", () => {
    choices.querySelectorAll(".choice").forEach((choice, number) => {
      choice.hidden = number !== select.selectedIndex;
    });
  });
}

for (const command of document.querySelectorAll(".command")) {
  const button = command.querySelector("button");
  button.addEventListener("click", async () => {
    const code = command.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // for the reader to copy
      button.textContent = "Selected";
    }
  });
}
