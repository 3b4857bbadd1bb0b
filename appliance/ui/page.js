// What every page runs before Gradio's scripts do. It stands between Gradio's client and the network.
{
  const network = window.fetch;
  const sessions = new Map(); // the name that Gradio gives one page that is open -> its Events

  // Whoever signs out is on the way to the sign-in, and what the page asks for meanwhile is of no use.
  let leaving = false;
  addEventListener("submit", ({ target }) => { leaving ||= new URL(target.action).pathname === "/signout"; });

  // A token that is revoked while a page is open: what the page asks for next is answered with 401.
  const ask = async (...given) => {
    if (leaving) await new Promise(() => {}); // for ever
    const reply = await network(...given);
    if (reply.status === 401)
      location.assign("/signin?next=" + encodeURIComponent(location.pathname + location.search));
    return reply;
  };

  // What happens on a page comes back in a stream that Gradio's server ends when nothing is left to come.
  // Its client opens the next one only for what is asked for once it knows of that end. What was asked for
  // between the two was never shown, so the client is given one stream that has no end, and those of the
  // server are read here, for as long as something is to come. (Gradio 6.31, its protocol "sse_v3".)
  class Events {
    waiting = new Set(); // what was asked for, and has not ended
    early = new Set(); // what ended before the server's answer to its being asked for was here
    reading = false;

    asked(id) {
      if (this.early.delete(id)) return;
      this.waiting.add(id);
      this.read();
    }

    // The answer to a client that wants the stream: the first of the server's, and all that follow.
    async open(request) {
      const first = await ask(request.clone());
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
          reply ??= await ask(this.request.clone());
          if (!reply.ok || !(await this.pass(reply.body)))
            throw new TypeError(`the stream of events ended early, with status ${reply.status}`);
          reply = null;
        } while (this.waiting.size > 0);
      } catch (error) {
        if (!this.request.signal.aborted) this.client.error(error); // aborted: the page is being left
        this.client = undefined;
      } finally {
        this.reading = false;
      }
    }

    // Hand on one stream of the server's; false if there was nothing in it.
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

    // Whether a message is for the client.
    noted({ msg, event_id: id }) {
      if (msg === "process_completed" && !this.waiting.delete(id)) this.early.add(id);
      if (msg === "unexpected_error" && !id) this.waiting.clear(); // it is of them all
      return msg !== "close_stream";
    }
  }

  const events = (name) => {
    if (!sessions.has(name)) sessions.set(name, new Events());
    return sessions.get(name);
  };

  window.fetch = async (...given) => {
    const [to, { body } = {}] = given;
    const address = new URL(to.url ?? to, location.href);
    if (address.pathname.endsWith("/queue/data"))
      return events(address.searchParams.get("session_hash")).open(to);
    const reply = await ask(...given);
    if (address.pathname.endsWith("/queue/join") && reply.ok)
      events(JSON.parse(body).session_hash).asked((await reply.clone().json()).event_id);
    return reply;
  };
}
