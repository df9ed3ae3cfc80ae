// Numbers, sizes, rates and times for people.

export const DASH = "–";

const short = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)).replace(/\.0+$|(\.\d*?)0+$/, "$1");

export function count(value) {
  for (const unit of ["", " k", " M", " G"]) {
    if (Math.abs(value) < 999.5) return short(value) + unit;
    value /= 1000;
  }
  return `${short(value)} T`;
}

export function size(bytes) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (bytes < 1023.5) return `${short(bytes)} ${unit}`;
    bytes /= 1024;
  }
  return `${short(bytes)} TiB`;
}

export function rate(bytesPerSecond) {
  if (bytesPerSecond === 0) return "0 GB/s";
  if (bytesPerSecond < 1e4) return `${short(bytesPerSecond)} B/s`;
  return bytesPerSecond < 1e7 ? `${short(bytesPerSecond / 1e6)} MB/s` : `${short(bytesPerSecond / 1e9)} GB/s`;
}

export const percent = (ratio) => (ratio === null ? DASH : `${(ratio * 100).toFixed(1)} %`);
export const perSecond = (value) => `${count(value)}/s`;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds === 0) return "0 s";
  if (seconds < 0.9995e-3) return `${short(seconds * 1e6)} µs`;
  if (seconds < 0.9995) return `${short(seconds * 1e3)} ms`;
  if (seconds < 120) return `${short(seconds)} s`;
  if (seconds < 7200) return `${short(seconds / 60)} min`;
  return seconds < 172800 ? `${short(seconds / 3600)} h` : `${short(seconds / 86400)} d`;
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

export const label = (tenant, id) => (tenant ? `${tenant}/${id}` : id);
