// What outputs do on every page: images open large, times move the player, subtitles, boxes, overlays, waveforms.
// Pages that Gradio builds replace parts of themselves at any time, so events are handled at the document.

import { _ } from "./texts.js";

// -- images

let lightbox = null;

function openImage(clicked) {
  const images = [...clicked.closest(".made, .page, body").querySelectorAll(".made figure a > img")];
  let at = images.indexOf(clicked);
  lightbox?.remove();
  lightbox = document.createElement("dialog");
  lightbox.className = "lightbox";
  const picture = document.createElement("img");
  const bar = document.createElement("p");
  bar.className = "actions";
  const show = (step) => {
    at = (at + step + images.length) % images.length;
    picture.src = images[at].src;
    picture.alt = images[at].alt;
  };
  const button = (text, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", act);
    bar.append(made);
  };
  if (images.length > 1) {
    button(_("Previous"), () => show(-1));
    button(_("Next"), () => show(1));
  }
  button(_("Close"), () => lightbox.close());
  lightbox.append(picture, bar);
  lightbox.addEventListener("keydown", ({ key }) => {
    if (key === "ArrowLeft") show(-1);
    if (key === "ArrowRight") show(1);
  });
  lightbox.addEventListener("click", ({ target }) => { if (target === lightbox) lightbox.close(); });
  document.body.append(lightbox);
  show(0);
  lightbox.showModal();
}

// Boxes are in pixels of the image, whose size is known once it has loaded.
function fitBoxes(image) {
  const boxes = image.parentElement?.querySelector("svg");
  if (!boxes || !image.naturalWidth) return;
  boxes.setAttribute("viewBox", `0 0 ${image.naturalWidth} ${image.naturalHeight}`);
  boxes.toggleAttribute("hidden", false);
}

// -- speech

function clock(seconds, comma) {
  const milliseconds = Math.round(seconds * 1000);
  const pad = (number, digits) => String(number).padStart(digits, "0");
  const parts = [Math.floor(milliseconds / 3_600_000), Math.floor(milliseconds / 60_000) % 60, Math.floor(milliseconds / 1000) % 60];
  return `${parts.map((part) => pad(part, 2)).join(":")}${comma}${pad(milliseconds % 1000, 3)}`;
}

// Returns the segments of a transcript as subtitles; `format` is "srt" or "vtt".
export function subtitles(segments, format) {
  const comma = format === "srt" ? "," : ".";
  const cues = segments.map(({ start, end, text }, index) => {
    const number = format === "srt" ? `${index + 1}\n` : "";
    return `${number}${clock(start, comma)} --> ${clock(end, comma)}\n${text}\n\n`;
  });
  return (format === "vtt" ? "WEBVTT\n\n" : "") + cues.join("");
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function segmentsOf(transcript) {
  return [...transcript.querySelectorAll("tr[data-start]")].map((row) => ({
    start: Number(row.dataset.start),
    end: Number(row.dataset.end),
    text: row.querySelector(".segment-text")?.textContent.trim() ?? "",
  }));
}

function markSpoken(player) {
  const transcript = player.closest(".transcript");
  transcript?.querySelectorAll("tr[data-start]").forEach((row) => {
    const now = player.currentTime >= Number(row.dataset.start) && player.currentTime < Number(row.dataset.end);
    row.toggleAttribute("aria-current", now);
  });
}

const MOST_AUDIO = 20 * 1024 * 1024; // bytes: larger files are not decoded to draw them

async function drawWaveform(player) {
  if (player.src.startsWith("data:")) return; // the content security policy lets no script read it
  const canvas = document.createElement("canvas");
  canvas.className = "waveform";
  canvas.width = 800;
  canvas.height = 64;
  canvas.setAttribute("aria-hidden", "true");
  player.before(canvas);
  let samples;
  try {
    const reply = await fetch(player.src);
    if (!reply.ok || Number(reply.headers.get("content-length") ?? 0) > MOST_AUDIO) return canvas.remove();
    const decoder = new OfflineAudioContext(1, 1, 8000);
    samples = (await decoder.decodeAudioData(await reply.arrayBuffer())).getChannelData(0);
  } catch {
    return canvas.remove(); // the server is gone, or the browser plays the format but does not decode it
  }
  const pen = canvas.getContext("2d");
  pen.fillStyle = getComputedStyle(canvas).color;
  const step = samples.length / 400;
  for (let bar = 0; bar < 400; bar++) {
    let loudest = 0;
    for (let at = Math.floor(bar * step); at < (bar + 1) * step && at < samples.length; at++)
      loudest = Math.max(loudest, Math.abs(samples[at]));
    const height = Math.max(1, loudest * 62);
    pen.fillRect(bar * 2, 32 - height / 2, 1.4, height);
  }
}

// -- events

document.addEventListener("click", (event) => {
  const { target } = event;
  if (!(target instanceof Element) || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (target.matches(".made figure a > img")) {
    event.preventDefault();
    openImage(target);
  }
  const transcript = target.closest(".transcript");
  if (target.matches(".transcript button.time")) {
    const player = transcript.querySelector("audio");
    player.currentTime = Number(target.closest("tr").dataset.start);
    player.play();
  }
  if (target.matches("[data-subtitles]")) {
    const format = target.dataset.subtitles;
    download(`transcript.${format}`, subtitles(segmentsOf(transcript), format));
  }
});
document.addEventListener("input", ({ target }) => {
  if (target instanceof Element && target.matches(".overlay input[type=range]"))
    target.closest(".overlay").querySelector(".layer").style.opacity = target.value / 100;
});
document.addEventListener("timeupdate", ({ target }) => markSpoken(target), true); // media events do not bubble
document.addEventListener("load", ({ target }) => { if (target instanceof HTMLImageElement) fitBoxes(target); }, true);

const drawn = new WeakSet();

function prepare() {
  document.querySelectorAll(".drawn img").forEach(fitBoxes);
  document.querySelectorAll(".made audio, .transcript audio").forEach((player) => {
    if (drawn.has(player)) return;
    drawn.add(player);
    drawWaveform(player);
  });
}

new MutationObserver(prepare).observe(document.body, { childList: true, subtree: true });
prepare();
