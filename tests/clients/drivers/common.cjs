// What every driver does: the URL and the event types come as arguments, each event goes out as one line of JSON,
// the end of stdin ends it, and exit code 3 says that the client has given up.
'use strict'

exports.url = process.argv[2]
exports.types = process.argv.slice(3)

exports.record = (id, type, data) => process.stdout.write(JSON.stringify({ id, type, data }) + '\n')

exports.gaveUp = (why) => {
  process.stderr.write(`gave up: ${why}\n`)
  process.exit(3)
}

// For clients with the browser's interface: a listener for every type, onmessage for the rest.
exports.listen = (source) => {
  const record = (event) => exports.record(event.lastEventId, event.type, event.data)
  source.onmessage = record
  for (const type of exports.types) source.addEventListener(type, record)
  source.onerror = () => {
    if (source.readyState === 2) exports.gaveUp('readyState is CLOSED')
  }
}

process.stdin.resume().on('end', () => process.exit(0))
