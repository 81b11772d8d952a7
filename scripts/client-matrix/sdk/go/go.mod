module livebridge/sdk

go 1.25

require github.com/centrifugal/centrifuge-go v0.12.1
