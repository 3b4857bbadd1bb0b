// Runs on every page before Gradio's scripts, and replaces window.fetch for Gradio's client.
{
  const network = window.fetch;
  const sessions = new Map(); // Gradio's name of an open page -> its Events

  // Gradio's server sends the results of events in a stream, and ends the stream when no event is pending. Its
  // client opens the next stream only for events that it sends after it has seen that end: the result of an
  // event that it sent just before was never shown. So the client gets one stream without an end, and this
  // script reads the streams of the server while events are pending. (Gradio 6.31, protocol "sse_v3".)
  class Events {
    waiting = new Set(); // ids of pending events
    early = new Set(); // ids of events that ended before the response to their request arrived
    reading = false;

    asked(id) {
      if (this.early.delete(id)) return;
      this.waiting.add(id);
      this.read();
    }

    // Answers the client with the first stream of the server, followed by all later ones.
    async open(request) {
      const first = await network(request.clone());
      if (!first.ok) return first;
      this.request = request;
      const body = new ReadableStream({ start: (client) => { this.client = client; } });
      this.read(first);
      return new Response(body, { status: first.status, headers: first.headers });
    }

    async read(reply = null) {
      if (this.reading || this.client === undefined) return;
      this.reading = true;
      try {
        do {
          reply ??= await network(this.request.clone());
          if (!reply.ok || !(await this.pass(reply.body)))
            throw new TypeError(`the stream of events ended early, with status ${reply.status}`);
          reply = null;
        } while (this.waiting.size > 0);
      } catch (error) {
        if (!this.request.signal.aborted) this.client.error(error); // aborted: the browser leaves the page
        this.client = undefined;
      } finally {
        this.reading = false;
      }
    }

    // Passes on the messages of one stream; returns false if there were none.
    async pass(body) {
      const reader = body.pipeThrough(new TextDecoderStream()).getReader();
      const encoder = new TextEncoder();
      let passed = false;
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return passed;
        const messages = (text + value).split("\n\n");
        text = messages.pop();
        for (const message of messages) {
          passed = true;
          if (this.noted(JSON.parse(message.slice("data:".length))))
            this.client.enqueue(encoder.encode(message + "\n\n"));
        }
      }
    }

    // Records a message; returns whether it is for the client.
    noted({ msg, event_id: id }) {
      if (msg === "process_completed" && !this.waiting.delete(id)) this.early.add(id);
      if (msg === "unexpected_error" && !id) this.waiting.clear(); // it ends all events
      return msg !== "close_stream";
    }
  }

  const events = (name) => {
    if (!sessions.has(name)) sessions.set(name, new Events());
    return sessions.get(name);
  };

  window.fetch = async (...given) => {
    const [to, { body } = {}] = given;
    const url = new URL(to.url ?? to, location.href);
    if (url.pathname.endsWith("/queue/data"))
      return events(url.searchParams.get("session_hash")).open(to);
    const reply = await network(...given);
    if (url.pathname.endsWith("/queue/join") && reply.ok)
      events(JSON.parse(body).session_hash).asked((await reply.clone().json()).event_id);
    return reply;
  };
}
