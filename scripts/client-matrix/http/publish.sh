# Publishes three messages with one run of curl: publish.sh URL plain|key.
url=$1
arguments=()
for number in 0 1 2; do
    [ "$number" = 0 ] || arguments+=(--next)
    arguments+=(--silent --output /dev/null --write-out '%{http_code}\n' --data "n$number")
    [ "$2" = plain ] || arguments+=(--header "Idempotency-Key: message-$number")
    arguments+=("$url")
done
curl "${arguments[@]}"
