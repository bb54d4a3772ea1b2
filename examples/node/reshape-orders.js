// Turns a shop's orders into one record a customer, and a flat table of the lines.
//
// input      {"orders": [{id, placed_at, customer, lines, payment}, …]}
// variables  last_order_id: where the run before ended; only newer orders are taken, and it is moved on
// output     the customers, the largest first; open payments
// condition  true when every order taken is paid
// files      customers.json, lines.csv

const fs = require("node:fs");
const path = require("node:path");

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const value = (order) => order.lines.reduce((sum, line) => sum + line.quantity * line.price_cents, 0);
const csvField = (field) => (/[",\n]/.test(String(field)) ? `"${String(field).replaceAll('"', '""')}"` : String(field));

async function main() {
  const { orders } = cronium.input();
  const after = cronium.getVariable("last_order_id") ?? 0;
  const fresh = orders.filter((order) => order.id > after);
  console.log(`read ${orders.length} orders, ${fresh.length} are newer than ${after}`);

  const customers = new Map();
  const table = [["order", "day", "customer", "sku", "quantity", "cents"]];
  for (const [index, order] of fresh.entries()) {
    const { id, name, email, country } = order.customer;
    const customer = customers.get(id) ?? { id, name, email, country, orders: [], spent_cents: 0 };
    customers.set(id, customer);
    customer.orders.push(order.id);
    customer.spent_cents += value(order);
    for (const line of order.lines) {
      const cents = line.quantity * line.price_cents;
      table.push([order.id, order.placed_at.slice(0, 10), name, line.sku, line.quantity, cents]);
    }
    if ((index + 1) % 10 === 0) {
      console.log(`reshaped ${index + 1} of ${fresh.length}`);
      await pause(250);
    }
  }

  const open = fresh.filter((order) => order.payment.status !== "paid");
  for (const order of open) console.error(`order ${order.id} is not paid: ${(value(order) / 100).toFixed(2)}`);

  const ranked = [...customers.values()].sort((a, b) => b.spent_cents - a.spent_cents);
  const directory = process.env.CRONIUM_OUTPUT_DIR;
  fs.writeFileSync(path.join(directory, "customers.json"), JSON.stringify(ranked, null, 2));
  fs.writeFileSync(path.join(directory, "lines.csv"), table.map((row) => row.map(csvField).join(",")).join("\n") + "\n");

  await cronium.output({
    orders: fresh.length,
    lines: table.length - 1,
    spent_cents: ranked.reduce((sum, customer) => sum + customer.spent_cents, 0),
    customers: Object.fromEntries(ranked.map(({ name, spent_cents }) => [name, spent_cents])),
    open: open.map((order) => order.id),
  });
  await cronium.setCondition(open.length === 0);
  if (fresh.length > 0) cronium.setVariable("last_order_id", Math.max(...fresh.map((order) => order.id)));
  console.log(`${ranked.length} customers, ${table.length - 1} lines, ${open.length} open payments`);
}

main();
