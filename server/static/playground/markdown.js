/** A model's markdown as elements: no script, no style, no image, nothing that is fetched. */
import DOMPurify from "../vendor/dompurify/purify.es.mjs";
import { marked } from "../vendor/marked/marked.esm.js";
import { html, useLayoutEffect, useRef } from "./ui.js";

const TAGS = [
  "a",
  "b",
  "blockquote",
  "br",
  "code",
  "del",
  "em",
  "h1",
  "h2",
  "h3",
  "h4",
  "h5",
  "h6",
  "hr",
  "i",
  "li",
  "ol",
  "p",
  "pre",
  "s",
  "strong",
  "sub",
  "sup",
  "table",
  "tbody",
  "td",
  "th",
  "thead",
  "tr",
  "ul",
];
const RULES = { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "start", "align"], RETURN_DOM_FRAGMENT: true };
const SAFE_LINK = /^(https?|mailto):/i;

/** HTML in a model's text is text, shown as it was written, and so are images. */
const tokenizer = { html: () => undefined, tag: () => undefined };
const renderer = { html: ({ text }) => escaped(text), image: ({ raw }) => escaped(raw) };
marked.use({ tokenizer, renderer, gfm: true, breaks: true });

function escaped(text) {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

/** Return the elements of a markdown text. */
export function toFragment(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), RULES);
  for (const link of fragment.querySelectorAll("a")) {
    if (!SAFE_LINK.test(link.getAttribute("href") ?? "")) link.removeAttribute("href");
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const block of fragment.querySelectorAll("pre")) block.tabIndex = 0; // scrolled with the keyboard
  return fragment;
}

/** Show a markdown text. */
export function Markdown({ text }) {
  const element = useRef(null);
  useLayoutEffect(() => element.current.replaceChildren(toFragment(text)), [text]);
  return html`<div class="markdown" ref=${element}></div>`;
}
