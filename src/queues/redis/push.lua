-- Pushes jobs to a Sidekiq queue, but for those that were pushed before. All or nothing: nobody sees half of it, and
-- Redis checks that it may write (memory, replica, loading) before the first write and not again.
--
-- KEYS: the set of queues, the queue, then bitmaps of what was pushed.
-- ARGV: the queue's name, the bitmaps' life in seconds, then for each job: its bitmap's place in KEYS, its bit, itself.
redis.call('SADD', KEYS[1], ARGV[1])

local fresh = {}
for at = 3, #ARGV, 3 do
    if redis.call('SETBIT', KEYS[tonumber(ARGV[at])], ARGV[at + 1], 1) == 0 then
        fresh[#fresh + 1] = at
    end
end
for key = 3, #KEYS do
    redis.call('EXPIRE', KEYS[key], ARGV[2])
end

-- In portions, because a call takes no more than Lua's stack holds.
for first = 1, #fresh, 1000 do
    local portion = {}
    for i = first, math.min(first + 999, #fresh) do
        portion[#portion + 1] = ARGV[fresh[i] + 2]
    end
    local pushed = redis.pcall('LPUSH', KEYS[2], unpack(portion))
    -- A script is not rolled back: a bit that stayed set (the queue's key is no list, say) would lose its job.
    if type(pushed) == 'table' and pushed.err then
        for i = first, #fresh do
            local at = fresh[i]
            redis.call('SETBIT', KEYS[tonumber(ARGV[at])], ARGV[at + 1], 0)
        end
        return pushed
    end
end
return #fresh
