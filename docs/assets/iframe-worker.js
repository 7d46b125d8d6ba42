// Browsers start no worker from a page opened from disk, and search runs in one: there an iframe takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      const inside = frame.contentWindow;
      const answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const add = (source, done) => {
        const script = inside.document.createElement("script");
        script.src = source;
        script.onload = done;
        inside.document.body.append(script);
      };
      inside.postMessage = answer;
      inside.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => new Promise((done) => add(source, done))), Promise.resolve());
      this.ready = new Promise((done) => add(url, done));
      this.inside = inside;
    }
    addEventListener(name, heard, options) {
      super.addEventListener(name, heard, options);
    }
    set onmessage(heard) {
      super.addEventListener("message", heard);
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
    }
    terminate() {}
  };
}
