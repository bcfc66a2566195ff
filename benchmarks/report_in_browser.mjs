// Opens a report.html in Chromium, as a reader does, and looks for what would disturb one.
//
//     node benchmarks/report_in_browser.mjs PAGE NODE_MODULES [SCREENSHOTS]
//
// PAGE: a report.html. NODE_MODULES: a folder that holds playwright-core and axe-core (npm install playwright-core
// axe-core). SCREENSHOTS: a folder for pictures, light, dark and of a phone. CHROMIUM: the browser, by default
// /usr/bin/chromium.
//
// Bounds: the page answers within two seconds of its opening; no error in the console, no violation of its policy, no
// request but for the page; no serious issue found by axe-core, light and dark, wide and narrow; nothing wider than a
// phone. Exit status: 0 inside the bounds, 1 outside, 2 called wrongly.

import { readFileSync, rmSync, mkdtempSync, mkdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [page, modules, shots] = process.argv.slice(2);
if (!page || !modules) {
  console.error("usage: node report_in_browser.mjs PAGE NODE_MODULES [SCREENSHOTS]");
  process.exit(2);
}
const INTERACTIVE_MS = 2000;
const VIEWS = [
  { name: "light", colorScheme: "light", viewport: { width: 1400, height: 1000 } },
  { name: "dark", colorScheme: "dark", viewport: { width: 1400, height: 1000 } },
  { name: "phone", colorScheme: "light", viewport: { width: 390, height: 844 }, deviceScaleFactor: 2 },
];
const require = createRequire(join(resolve(modules), "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const url = pathToFileURL(resolve(page)).href;
const profile = mkdtempSync(join(tmpdir(), "report-"));
const switches = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: [...switches, "--no-sandbox", "--disable-component-update", "--disable-sync"],
});
const problems = [];

// From opening the page to the answer of its filter; the best of three, as the machine has other work too.
async function answerMs() {
  const times = [];
  for (let round = 0; round < 3; round += 1) {
    const tab = await browser.newPage();
    const begin = performance.now();
    await tab.goto(url, { waitUntil: "load" });
    const canFilter = await tab.locator("#filters").isVisible();
    if (canFilter) {
      await tab.fill("#f-text", "zzz-nothing");
      await tab.waitForFunction(() => document.getElementById("f-count").textContent.startsWith("0 of"));
    }
    times.push(performance.now() - begin);
    await tab.close();
  }
  return Math.min(...times);
}

async function look(view) {
  const context = await browser.browser()?.newContext(view);
  const tab = context ? await context.newPage() : await browser.newPage();
  if (!context) {
    await tab.setViewportSize(view.viewport);
    await tab.emulateMedia({ colorScheme: view.colorScheme });
  }
  tab.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) problems.push(`${view.name}: console: ${message.text()}`);
  });
  tab.on("pageerror", (error) => problems.push(`${view.name}: ${error}`));
  tab.on("request", (request) => {
    if (request.url() !== url && !request.url().startsWith("data:")) problems.push(`${view.name}: asked for ${request.url()}`);
  });
  await tab.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  await tab.goto(url, { waitUntil: "load" });
  const sort = tab.locator("table.sortable .sort").first();
  if (await sort.count()) await sort.click();
  for (const violation of await tab.evaluate(() => window.violations)) problems.push(`${view.name}: policy: ${violation}`);
  const wide = await tab.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (wide > 0) problems.push(`${view.name}: ${wide} px wider than the window`);
  await tab.goto(url, { waitUntil: "load" });
  await tab.evaluate(() => document.querySelectorAll("details").forEach((one, place) => { one.open = place < 40; }));
  await tab.evaluate(axe);
  const found = await tab.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const issue of found.violations) {
    const line = `${view.name}: axe: ${issue.impact}: ${issue.id}: ${issue.help}, ${issue.nodes.length} ×, such as ${issue.nodes[0].target}`;
    if (["serious", "critical"].includes(issue.impact)) problems.push(`${line} ${issue.nodes[0].failureSummary}`);
    else console.log(line);
  }
  if (shots) {
    mkdirSync(shots, { recursive: true });
    await tab.goto(url, { waitUntil: "load" });
    await tab.evaluate(() => document.querySelectorAll("details").forEach((one) => { one.open = false; }));
    await tab.screenshot({ path: join(shots, `${view.name}.png`) });
    await tab.screenshot({ path: join(shots, `${view.name}-whole.png`), fullPage: true });
  }
  await (context ?? tab).close();
}

try {
  const ms = await answerMs();
  console.log(`${(statSync(page).size / 1e6).toFixed(2)} MB, answers ${ms.toFixed(0)} ms after it was opened`);
  if (ms > INTERACTIVE_MS) problems.push(`answers only after ${ms.toFixed(0)} ms, more than ${INTERACTIVE_MS}`);
  for (const view of VIEWS) await look(view);
} finally {
  await browser.close();
  rmSync(profile, { recursive: true, force: true });
}
for (const problem of problems) console.log(`PROBLEM ${problem}`);
console.log(problems.length ? `${problems.length} problems` : "no problem");
process.exit(problems.length ? 1 : 0);
