/** What the protocol says, as pages get it: messages, people, and why messages may be missing. */

/** Why messages may have been missed. @type {[string, string]} */
export const NO_HISTORY = ["no_history", "the channel keeps no history: what came while disconnected is lost"];
/** @type {[string, string]} */
export const TRIMMED = ["history_trimmed", "the history no longer has all messages since the last one"];
/** @type {[string, string]} */
export const CHANGED = ["epoch_changed", "the history of the channel began anew"];

/** @param {any} publication @param {string} [epoch] @param {number} [head]  of the protocol, as pages get it */
export function message(/** @type {string} */ channel, publication, epoch, head = -1) {
  const { data, key, removed = false, offset, tags, encoding = tags?.encoding } = publication;
  return {
    channel,
    data: encoding === "base64" ? fromBase64(data) : data,
    key,
    removed,
    past: offset <= head, // false where it has no offset
    epoch: offset === undefined ? undefined : epoch,
    offset,
  };
}

/** @param {any} info  of the protocol */
export function person({ client, user = "", conn_info: info }) {
  return { client, user, info };
}

/** @param {string} text */
function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
