-- Posts the lines of a file as JSON bodies, in order and over again. All requests are built before the first is sent.
dofile((os.getenv("QUORATE_BENCH_LUA") or ".") .. "/report.lua")

local prepared = {}
local index = 0

function init(arguments)
  wrk.headers["Content-Type"] = "application/json"
  for body in io.lines(arguments[1]) do
    prepared[#prepared + 1] = wrk.format("POST", nil, nil, body)
  end
end

function request()
  index = index % #prepared + 1
  return prepared[index]
end
