/**
 * ALTCHA's published widget. Its styles and its worker are files beside this one: the page's policy allows nothing inline.
 */
import "altcha/external";

function beside(name: string): URL {
  return new URL(name, import.meta.url);
}

const styles = document.createElement("link");
styles.rel = "stylesheet";
styles.href = beside("altcha.css").href;
document.head.append(styles);
$altcha.algorithms.set("PBKDF2/SHA-256", () => new Worker(beside("pbkdf2.js"), { type: "module" }));
