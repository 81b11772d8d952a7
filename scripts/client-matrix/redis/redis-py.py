"""redis-py."""

import redis
from common import MODE, PORT, call, done, wait
from redis.backoff import NoBackoff
from redis.retry import Retry

options = {"retry": Retry(NoBackoff(), 0)} if MODE == "off" else {}
client = redis.Redis(port=PORT, **options)
client.fcall(*call("first"))
wait()
try:
    client.fcall(*call("second"))
    done()
except redis.RedisError as error:
    done(error)
