// Search from a disk: browsers start no worker under file://, so one runs in a hidden frame.
// It does what the search needs, messages to and fro, and nothing is fetched for it.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      const script = this.inside.document.createElement("script")
      script.src = address
      this.ready = new Promise(done => { script.onload = done })
      this.inside.document.body.append(script)
    }
    postMessage(data) {
      this.ready.then(() => {
        this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }))
      })
    }
    terminate() { this.inside.frameElement.remove() }
  }
}
