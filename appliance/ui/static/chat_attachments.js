// Files that are attached to a message: images, made smaller if they are large, and text files.

import { _ } from "./texts.js";

const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const LARGEST_IMAGE = 512 * 1024; // bytes of a file that is sent as it is
const LONGEST_SIDE = 1568; // pixels, to which larger images are reduced
const LARGEST_TEXT = 512 * 1024; // bytes
const MOST = 10; // files of one message

// Adds files to a draft. Returns why some of them were not added; empty if all were.
export async function attach(draft, files, { images }) {
  const problems = [];
  for (const file of files) {
    if (draft.images.length + draft.files.length >= MOST) {
      problems.push(_("A message can have {count} files at most.", { count: MOST }));
      break;
    }
    const problem = file.type.startsWith("image/")
      ? await attachImage(draft, file, images)
      : await attachText(draft, file);
    if (problem !== "") problems.push(problem);
  }
  return problems.join(" ");
}

async function attachImage(draft, file, accepted) {
  const name = file.name || _("image");
  if (!accepted) return _("{name}: this model does not accept images. Choose another model.", { name });
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return _("{name}: the browser cannot read this image.", { name });
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const unchanged = scale === 1 && file.size <= LARGEST_IMAGE && IMAGE_TYPES.includes(file.type);
  draft.images.push({ name: name.slice(0, 255), url: await dataUrl(unchanged ? file : await reduced(bitmap, scale)) });
  bitmap.close();
  return "";
}

async function reduced(bitmap, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.88));
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function attachText(draft, file) {
  const { name } = file;
  if (file.size > LARGEST_TEXT) {
    return _("{name}: text files can have {count} KiB at most.", { name, count: LARGEST_TEXT / 1024 });
  }
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    text = "\0";
  }
  if (text.includes("\0")) return _("{name}: only images and text files in UTF-8 can be attached.", { name });
  draft.files.push({ name: name.slice(0, 255), text });
  return "";
}
