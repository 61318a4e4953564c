/** The element with this id, of this type. Throws when the page lacks it: the page and the script belong together. */
export function element<T extends HTMLElement>(id: string, type: new () => T): T {
  const found = document.getElementById(id);
  if (!(found instanceof type)) {
    throw new Error(`The page has no ${type.name} with the id ${id}.`);
  }
  return found;
}

/** A list item with a small label in front of its text. */
export function labelledItem(label: string, text: string): HTMLLIElement {
  const item = document.createElement("li");
  const mark = document.createElement("span");
  mark.className = "mark";
  mark.textContent = label;
  item.append(mark, text);
  return item;
}
