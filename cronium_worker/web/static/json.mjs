/** JSON for people to read, of values that may be very large. No document is needed here. */

/** Indented JSON; of a text that is longer than `most` characters, its beginning and a little more. */
export function shortJson(value, most) {
  const parts = [];
  let left = most;
  const put = (text) => {
    parts.push(text);
    left -= text.length;
  };

  function write(value, indent) {
    if (value === null || typeof value !== "object") return put(typeof value === "string" ? quoted(value) : JSON.stringify(value));
    const isArray = Array.isArray(value);
    const [open, close] = isArray ? "[]" : "{}";
    put(open);
    let isFirst = true;
    for (const key of isArray ? value.keys() : Object.keys(value)) {
      if (left <= 0) return;
      put(`${isFirst ? "" : ","}\n${indent}  `);
      if (!isArray) put(`${quoted(key)}: `);
      write(value[key], `${indent}  `);
      isFirst = false;
    }
    put(isFirst ? close : `\n${indent}${close}`);
  }

  const quoted = (text) => JSON.stringify(text.slice(0, Math.max(0, left) + 1));
  write(value, "");
  return parts.join("");
}
