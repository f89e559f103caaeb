// Dark or light: what the system says, until the button says otherwise.

import { attribute, byId, text } from "./dom.js";

const NAME = "merklekv-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

function chosen() {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null; // storage is switched off
  }
}

/** Shows the theme and lets the button change it; `onChange` is called after each change. */
export function startTheme(onChange) {
  const button = byId("theme");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const show = () => {
    text(button, isDark() ? "Light" : "Dark");
    attribute(button, "aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    onChange();
  };
  const before = chosen();
  if (before === "dark" || before === "light") document.documentElement.dataset.theme = before;
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem(NAME, theme);
    } catch {
      // it lasts as long as the page
    }
    show();
  });
  dark.addEventListener("change", show);
  show();
}
