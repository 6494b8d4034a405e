const items = JSON.parse(document.getElementById('items').textContent)
const position = encodeURIComponent(document.body.dataset.position)
const source = new EventSource(`/api/events/stream?channels=orders&lastEventId=${position}`)
source.addEventListener('PLACED', (event) => items.push(JSON.parse(event.data).item))
