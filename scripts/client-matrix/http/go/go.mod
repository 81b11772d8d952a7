module livebridge/http

go 1.24
