// The usual server: Express inserts a row per request and sends it to the streams it holds in memory.
"use strict";
const express = require("express");
const { Pool } = require("pg");

const pool = new Pool({ max: Number(process.env.POOL || 32) });
const streams = new Set();
const app = express();
app.disable("x-powered-by");
app.disable("etag");
app.use(express.json());

app.get("/healthz", (request, response) => response.json({ ok: true }));

app.get("/stream", (request, response) => {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  response.write(": hello\n\n");
  streams.add(response);
  request.on("close", () => streams.delete(response));
});

app.post("/publish", async (request, response) => {
  const { channel, eventType, payload } = request.body;
  try {
    const { rows } = await pool.query({
      name: "publish",
      text: "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ($1, $2, $3) RETURNING id, created_at",
      values: [channel, eventType || "message", JSON.stringify(payload)],
    });
    const { id, created_at: createdAt } = rows[0];
    const block = `id: ${id}\nevent: ${eventType || "message"}\ndata: ${JSON.stringify(payload)}\n\n`;
    for (const stream of streams) stream.write(block);
    response.status(201).json({ id, channel, eventType, createdAt });
  } catch (error) {
    response.status(500).json({ error: error.message });
  }
});

const server = app.listen(Number(process.argv[2]), "127.0.0.1", 4096);
server.keepAliveTimeout = 600000;
